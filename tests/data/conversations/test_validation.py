from __future__ import annotations

from typing import Any

import pytest

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.issues import REMEDIES, Fix, Issue, format_fixes, format_issues
from mm_rec.data.conversations.repair import repair_conversation
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.tokenizers.special_tokens import SPECIAL_TOKENS

SCHEMA = {"type": "object", "properties": {"şehir": {}, "gün": {}}, "required": ["şehir"]}
LETTERS = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool", "?": "kâhin", "-": ""}


def tool(name: str = "hava", parameters: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}, **more}


def talk(script: str, *tools: dict[str, Any]) -> Conversation:
    """A conversation in short: a letter for the role, then the text; `a!x,y` calls hava with the ids x and y."""
    messages = []
    for part in script.split():
        role, text = LETTERS[part[0]], part[1:]
        if text.startswith("!"):
            calls = tuple(ToolCall("hava", {"şehir": "Van"}, name.strip("_")) for name in text[1:].split(","))
            messages.append(ChatMessage(role, "", calls))
        elif role == "tool":
            messages.append(ChatMessage(role, "kar", tool_call_id=text))
        else:
            messages.append(ChatMessage(role, text))
    return Conversation(tuple(messages), tools, location="a.jsonl:3")


def call(arguments: dict[str, Any], name: str = "hava", *tools: dict[str, Any]) -> Conversation:
    messages = (ChatMessage("user", "?"), ChatMessage("assistant", "", (ToolCall(name, arguments),)))
    return Conversation(messages, tools or (tool(),))


@pytest.mark.parametrize(
    "script",
    [
        "uSoru aYanıt",
        "sSistem uSoru aYanıt uSoru aYanıt",
        "sSistem dGeliştirici uSoru aYanıt",
        "uSoru a!_ t aYanıt",
        "uSoru a!x,y tx ty aYanıt",
        "uSoru a!x,y ty tx a!z tz aYanıt",
        "uSoru a!_,_ t aYanıt",  # one result for all calls
        "uSoru a!x",  # the call is the answer
        "uSoru a!x,y t t aYanıt",  # the order tells what the ids do not
    ],
)
def test_sound_conversations(script: str):
    assert check_conversation(talk(script, tool()), SPECIAL_TOKENS) == []


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        ("", ["no-messages"]),
        ("uSoru ?Cevap aYanıt", ["unknown-role"]),
        ("uSoru -Cevap aYanıt", ["missing-role"]),
        ("uSoru a", ["empty-answer"]),
        ("u aYanıt", ["empty-message"]),
        ("s uSoru aYanıt", ["empty-message"]),
        ("sBir sİki uSoru aYanıt", ["two-systems"]),
        ("sBir uSoru aYanıt sİki uSoru aYanıt", ["two-systems"]),
        ("uSoru sBir aYanıt", ["system-not-first"]),
        ("aYanıt uSoru aYanıt", ["role-order"]),
        ("uSoru uSoru aYanıt", ["role-order"]),
        ("uSoru aYanıt aYanıt", ["role-order"]),
        ("uSoru aYanıt uSoru", ["role-order"]),
        ("sSistem", ["role-order"]),
        ("uSoru a!x tx uSoru aYanıt", ["role-order"]),
        ("uSoru aYanıt t aYanıt", ["result-without-call"]),
        ("uSoru t aYanıt", ["result-without-call"]),
        ("uSoru a!x tx ty aYanıt", ["result-without-call", "result-without-call"]),
        ("uSoru a!x,y tx tx aYanıt", ["result-without-call"]),
        ("uSoru a!x tz aYanıt", ["result-without-call"]),
        ("uSoru a!x,y tx aYanıt", ["call-without-result"]),
        ("uSoru a!_,_,_ t t aYanıt", ["call-without-result"]),
        ("uSoru a!x aYanıt", ["role-order", "call-without-result"]),
        ("uSoru aBen<|user|> uSoru aYanıt", ["special-token"]),
        ("s u a", ["empty-message", "empty-message", "empty-answer"]),
    ],
)
def test_each_thing_that_is_wrong_with_messages_has_its_kind_and_place(script: str, kinds: list[str]):
    found = check_conversation(talk(script, tool()), SPECIAL_TOKENS)
    assert [issue.kind for issue in found] == kinds
    assert {issue.location for issue in found} == {"a.jsonl:3"}
    assert set(kinds) <= REMEDIES.keys()


@pytest.mark.parametrize(
    ("conversation", "kind", "words"),
    [
        (call({"şehir": "Van"}, "saat"), "call-without-definition", "calls 'saat'; defined tools: 'hava'"),
        (talk("uSoru a!x"), "call-without-definition", "defined tools: none"),
        (call({"gün": 1}), "bad-arguments", "without the required parameter 'şehir'"),
        (call({"şehir": "Van", "saat": 1}), "bad-arguments", "with the unknown parameter 'saat'"),
        (call({"a": 1}, "f", tool("f", {"additionalProperties": False})), "bad-arguments", "parameter 'a'"),
        (call({"şehir": "<|endoftext|>"}), "special-token", "<|endoftext|>"),
        (talk("uSoru aYanıt", tool(type="web_search")), "bad-tool-definition", "'web_search'"),
        (talk("uSoru aYanıt", tool("")), "bad-tool-definition", "the name of a function is ''"),
        (talk("uSoru aYanıt", tool(), tool()), "bad-tool-definition", "'hava' is defined twice"),
        (talk("uSoru aYanıt", tool("f", [])), "bad-tool-definition", "no JSON schema"),
        (talk("uSoru aYanıt", tool("f", {"type": "dict"})), "bad-tool-definition", "'dict'"),
        (talk("uSoru aYanıt", tool("f", {"properties": []})), "bad-tool-definition", "properties"),
        (talk("uSoru aYanıt", tool("f", {"required": "a"})), "bad-tool-definition", "no list of names"),
        (talk("uSoru aYanıt", tool("f", {"required": ["a"]})), "bad-tool-definition", "require 'a'"),
        (talk("uSoru aYanıt", tool("<|tool|>")), "special-token", "definitions"),
        (talk("u!x aYanıt", tool()), "misplaced-call", "message 1 (user) calls a tool"),
        (Conversation((ChatMessage("user", "?"), ChatMessage("assistant", "!", tool_call_id="x"))),
         "misplaced-call", "message 2 (assistant) answers a call"),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_with_tools(conversation: Conversation, kind: str, words: str):
    found = [issue for issue in check_conversation(conversation, SPECIAL_TOKENS) if issue.kind == kind]
    assert len(found) == 1 and words in found[0].message


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"properties": {"şehir": {}}, "additionalProperties": True},
        {"properties": {"şehir": {}}, "additionalProperties": {"type": "string"}},
    ],
)
def test_schemas_that_allow_any_arguments(parameters: Any):
    assert check_conversation(call({"şehir": "Van", "x": 1}, "hava", tool("hava", parameters))) == []


@pytest.mark.parametrize(
    ("script", "mended"),
    [
        ("uSoru aYanıt", "uSoru aYanıt"),
        ("sBir uSoru aYanıt sİki uSoru aYanıt", "sBir|İki uSoru aYanıt uSoru aYanıt"),
        ("s uSoru aYanıt", "uSoru aYanıt"),
        ("uSoru sBir dBu aYanıt", "sBir dBu uSoru aYanıt"),
        ("uBir uİki aÜç aDört", "uBir|İki aÜç|Dört"),
        ("aSelam uSoru aYanıt uSon", "uSoru aYanıt"),
        ("sBir aSelam uSoru aYanıt uSon", "sBir uSoru aYanıt"),
        ("uBir a uİki aYanıt", "uİki aYanıt"),
        ("uBir aTamam u aBoş uİki aYanıt", "uBir aTamam uİki aYanıt"),
        ("uBir a aYanıt", "uBir aYanıt"),
        ("uSo<|us<|user|>er|>ru aYanıt<|endoftext|>", "uSoru aYanıt"),
        ("uSoru a!x tx", "uSoru a!x"),
        ("uSoru a", None),
        ("uSoru ?Cevap aYanıt", None),
        ("uSoru a!x aYanıt", None),
        ("uSoru aYanıt t aYanıt", None),
        ("", None),
    ],
)
def test_what_is_mended_and_what_is_left_out(script: str, mended: str | None):
    conversation, done = repair_conversation(talk(script, tool()), SPECIAL_TOKENS)
    if mended is None:
        assert conversation is None and done and all(text.startswith("left out: ") for text in done)
    else:
        assert conversation is not None and check_conversation(conversation, SPECIAL_TOKENS) == []
        expected = talk(mended, tool())
        assert [(m.role, m.content.replace("\n\n", "|"), m.tool_calls) for m in conversation.messages] == [
            (m.role, m.content, m.tool_calls) for m in expected.messages
        ]
        assert bool(done) == (script != mended)


def test_mending_keeps_weights_apart_and_everything_else():
    answers = [ChatMessage("assistant", "a", weight=0), ChatMessage("assistant", "b", weight=1)]
    asked = ChatMessage("user", "?")
    assert repair_conversation(Conversation((asked, *answers))) == (None, ["left out: role-order"])
    conversation = Conversation(
        (asked, answers[0], answers[0]), (tool("f", {"type": "dict", "properties": {}}),), {"id": 1}, "a:1"
    )
    mended, done = repair_conversation(conversation)
    assert mended == Conversation(
        (asked, ChatMessage("assistant", "a\n\na", weight=0)),
        (tool("f", {"type": "object", "properties": {}}),),
        {"id": 1},
        "a:1",
    )
    assert done == ["messages of one role joined", "parameters of the type 'dict' called 'object'"]


def test_the_list_of_problems_has_each_kind_once_with_count_places_and_remedy():
    problems = [
        Issue("empty-answer", f"a.jsonl:{line}", "message 2 (assistant) is empty") for line in range(1, 6)
    ]
    problems += [Issue("not-json", "b.jsonl:9", "this row is not JSON")]
    problems += [Issue("empty-answer", f"a.jsonl:{line}", f"message {line} is empty") for line in (7, 8, 9)]
    assert format_issues(problems).splitlines() == [
        "empty-answer: 8 times",
        "    message 2 (assistant) is empty (a.jsonl:1, 2, 3, 4, 5)",
        "    message 7 is empty (a.jsonl:7)",
        "    message 8 is empty (a.jsonl:8)",
        "    … and 1 more (a.jsonl:9)",
        f"  → {REMEDIES['empty-answer']}",
        "not-json: once",
        "    this row is not JSON (b.jsonl:9)",
        f"  → {REMEDIES['not-json']}",
    ]
    fixes = [Fix("a.jsonl:1", "joined"), Fix("b.jsonl:1", "cut"), Fix("b.jsonl:2", "cut")]
    assert format_fixes(fixes) == "cut: 2 times (b.jsonl:1, 2)\njoined: once (a.jsonl:1)"
