from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.dataset_writer import to_row, to_rows, write_rows
from mm_rec.data.conversations.issues import IssueError
from mm_rec.data.conversations.row_formats import FORMATS, detect_format, parse_conversations, parse_row
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.errors import ConfigError

WEATHER = {
    "type": "function",
    "function": {
        "name": "hava",
        "description": "Bir şehrin havası.",
        "parameters": {"type": "object", "properties": {"şehir": {"type": "string"}}, "required": ["şehir"]},
    },
}


def read(row: dict[str, Any], format_name: str | None = None, **options: Any) -> list[Conversation]:
    """The conversations of a row whose format is told by its fields."""
    fields = options.get("fields")
    name = detect_format(row, fields)
    assert format_name is None or name == format_name
    return parse_conversations(row, name, **options)


def issues(row: dict[str, Any], format_name: str | None = None) -> list[tuple[str, str]]:
    with pytest.raises(IssueError) as caught:
        parse_conversations(row, format_name or detect_format(row))
    return [(issue.kind, issue.message) for issue in caught.value.issues]


def ask(question: str, answer: str, **more: Any) -> Conversation:
    return Conversation((ChatMessage("user", question), ChatMessage("assistant", answer)), **more)


def test_openai_with_everything_that_it_can_say():
    row = {
        "messages": [
            {"role": "system", "content": "Kısa yanıt ver."},
            {
                "role": "developer",
                "content": [{"type": "text", "text": "Yalnız "}, {"type": "text", "text": "Türkçe."}],
            },
            {"role": "user", "content": "İzmir ve Van'da hava?", "weight": 0},
            {
                "role": "assistant",
                "content": None,
                "weight": 0,
                "tool_calls": [
                    {
                        "id": "a",
                        "type": "function",
                        "function": {"name": "hava", "arguments": '{"şehir": "İzmir"}'},
                    },
                    {
                        "id": "b",
                        "type": "function",
                        "function": {"name": "hava", "arguments": {"şehir": "Van"}},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "b", "name": "hava", "content": "kar"},
            {"role": "tool", "tool_call_id": "a", "content": "güneş"},
            {"role": "assistant", "content": "İzmir güneşli, Van karlı.", "loss_weight": 1.0},
        ],
        "tools": [WEATHER],
        "parallel_tool_calls": True,
        "id": 7,
        "metadata": {"kaynak": "elle"},
    }
    (conversation,) = read(row, "openai", location="a.jsonl:1")
    assert conversation == Conversation(
        (
            ChatMessage("system", "Kısa yanıt ver."),
            ChatMessage("developer", "Yalnız Türkçe."),
            ChatMessage("user", "İzmir ve Van'da hava?"),
            ChatMessage(
                "assistant",
                tool_calls=(
                    ToolCall("hava", {"şehir": "İzmir"}, "a"),
                    ToolCall("hava", {"şehir": "Van"}, "b"),
                ),
                weight=0,
            ),
            ChatMessage("tool", "güneş", tool_call_id="a"),  # in the order of the calls
            ChatMessage("tool", "kar", tool_call_id="b"),
            ChatMessage("assistant", "İzmir güneşli, Van karlı.", weight=1),
        ),
        (WEATHER,),
        {"id": 7, "parallel_tool_calls": True, "kaynak": "elle"},
        "a.jsonl:1",
    )
    assert check_conversation(conversation) == []


def test_openai_before_tools_were_called_so():
    row = {
        "messages": [
            {"role": "user", "content": "Van?"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "hava", "arguments": '{"şehir": "Van"}'},
            },
            {"role": "function", "name": "hava", "content": "kar"},
            {"role": "assistant", "content": "Karlı."},
        ],
        "functions": [WEATHER["function"]],
    }
    (conversation,) = read(row, "openai")
    assert conversation.messages[1:3] == (
        ChatMessage("assistant", tool_calls=(ToolCall("hava", {"şehir": "Van"}),)),
        ChatMessage("tool", "kar"),
    )
    assert conversation.tools == (WEATHER,)


@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER["function"]], json.dumps([WEATHER["function"]])])
def test_sharegpt_where_content_and_call_are_one_turn(tools: object):
    row = {
        "conversations": [
            {"from": "human", "value": "Van?"},
            {"from": "gpt", "value": "Bakıyorum."},
            {"from": "function_call", "value": '{"name": "hava", "arguments": {"şehir": "Van"}}'},
            {"from": "observation", "value": "kar"},
            {"from": "gpt", "value": "Karlı."},
        ],
        "system": "Kısa yanıt ver.",
        "tools": tools,
    }
    (conversation,) = read(row, "sharegpt")
    assert [message.role for message in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert conversation.messages[2] == ChatMessage(
        "assistant", "Bakıyorum.", (ToolCall("hava", {"şehir": "Van"}),)
    )
    assert conversation.tools == (WEATHER,)


def test_names_that_sharegpt_has_for_the_roles():
    names = ["system", "human", "gpt", "user", "assistant", "human", "bot", "human", "model"]
    row = {"conversations": [{"from": name, "value": name} for name in names]}
    (conversation,) = read(row, "sharegpt")
    roles = [message.role for message in conversation.messages]
    assert roles == ["system", *["user", "assistant"] * 4]


def test_alpaca_with_input_history_and_system():
    row = {
        "instruction": "Çevir.",
        "input": "good morning",
        "output": "Günaydın.",
        "history": [["Merhaba", "Merhaba!"]],
        "system": "Çevirmensin.",
    }
    (conversation,) = read(row, "alpaca")
    assert conversation == Conversation(
        (
            ChatMessage("system", "Çevirmensin."),
            ChatMessage("user", "Merhaba"),
            ChatMessage("assistant", "Merhaba!"),
            ChatMessage("user", "Çevir.\n\ngood morning"),
            ChatMessage("assistant", "Günaydın."),
        )
    )


def test_self_instruct_gives_a_conversation_for_each_instance():
    instances = [{"input": "iyi", "output": "kötü"}, {"input": "", "output": "uzun"}]
    row = {"id": "t1", "instruction": "Zıttı?", "instances": instances, "is_classification": False}
    metadata = {"id": "t1", "is_classification": False}
    assert read(row, "self-instruct") == [
        ask("Zıttı?\n\niyi", "kötü", metadata=metadata),
        ask("Zıttı?", "uzun", metadata=metadata),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "response": "2"},
        {"question": "1+1?", "answer": "2"},
        {"query": "1+1?", "output": "2"},
        {
            "prompt": [{"role": "user", "content": "1+1?"}],
            "completion": [{"role": "assistant", "content": "2"}],
        },
        {"prompt": "1+1?", "completion": [{"role": "assistant", "content": "2"}]},
    ],
)
def test_prompt_and_response_under_each_name(row: dict[str, Any]):
    assert read(row, "prompt") == [ask("1+1?", "2")]


def test_fields_of_theirs_for_fields_of_ours():
    assert read({"soru": "1+1?", "cevap": "2"}, "prompt", fields={"prompt": "soru", "response": "cevap"}) == [
        ask("1+1?", "2")
    ]
    row = {"satırlar": [{"kim": "human", "söz": "1+1?"}, {"kim": "gpt", "söz": "2"}]}
    fields = {"conversations": "satırlar", "from": "kim", "value": "söz"}
    assert read(row, "sharegpt", fields=fields) == [ask("1+1?", "2")]
    with pytest.raises(
        ConfigError, match="--map promt=soru: there is no field 'promt'; did you mean 'prompt'"
    ):
        read_conversations(["a.jsonl"], fields={"promt": "soru"})


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"metin": "x"}, "unknown-format", "the fields of this row ('metin') are those of no format"),
        ({"prompt": "x"}, "unknown-format", "'prompt'"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "preference-data", "'chosen', 'rejected'"),
        ({"messages": [], "label": True}, "preference-data", "'label'"),
        ({"question": "x", "answer": 5}, "bad-content", "not a list"),
        ({"question": "x", "prompt": "x", "answer": "5"}, "ambiguous-field", "'prompt' and 'question' mean the same"),
        ({"messages": [], "conversations": []}, "ambiguous-field", "both 'messages' and 'conversations'"),
        ({"instruction": "x", "output": "y", "inputs": "z"}, "unknown-field", "'inputs'; did you mean 'input'?"),
        ({"instruction": "x"}, "missing-field", "'output'"),
        ({"instruction": "x", "output": ["y"]}, "bad-content", "the field 'output' is not text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "bad-content", "history"),
        ({"instruction": "x", "instances": ["y"]}, "bad-content", "instances"),
        ({"instruction": "x", "instances": []}, "no-messages", "no instances"),
        ({"instruction": "x", "instances": [{"inptu": "", "output": "y"}]}, "unknown-field", "did you mean 'input'?"),
        ({"messages": "merhaba"}, "bad-content", "not a list"),
        ({"messages": ["merhaba"]}, "bad-content", "message 1 is not an object"),
        ({"prompt": "x", "answer": "yarım \ud83d"}, "surrogate", "'\\ud83d'"),
        ({"prompt": "x", "answer": "y", "tools": "[{"}, "bad-tool-definition", "not a list"),
        ({"prompt": "x", "answer": "y", "tools": ["hava"]}, "bad-tool-definition", "defines no function"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_say_why(row: dict[str, Any], kind: str, words: str):
    ((found, message),) = issues(row)
    assert found == kind and words in message


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ({"contents": "x"}, "unknown-field", "message 2 has an unknown field 'contents'; did you mean 'content'?"),
        ({"content": "x", "weight": 0.5}, "bad-weight", "0.5"),
        ({"content": "x", "weight": True}, "bad-weight", "true"),
        ({"content": 5}, "bad-content", "not text but 5"),
        ({"content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}, "bad-content", "image_url"),
        ({"content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "x"}]}, "reasoning", "message 2"),
        ({"tool_calls": [{"function": {"name": "hava", "arguments": '{"şehir": Van}'}}]}, "bad-arguments", "not JSON"),
        ({"tool_calls": [{"function": {"name": "hava", "arguments": "[1]"}}]}, "bad-arguments", "no JSON object"),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "bad-arguments", "names no function"),
        ({"tool_calls": ["hava"]}, "bad-arguments", "not a JSON object"),
        ({"tool_calls": [{"name": "hava", "argumnets": {}}]}, "unknown-field", "did you mean 'arguments'?"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_read_say_why(message: dict[str, Any], kind: str, words: str):
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", **message}]}
    ((found, text),) = issues(row)
    assert found == kind and words in text


def test_a_weight_belongs_to_answers():
    row = {"messages": [{"role": "user", "content": "?", "weight": 1}, {"role": "assistant", "content": "!"}]}
    assert issues(row) == [("bad-weight", "message 1 (user) has the weight 1, but only answers are learnt")]


def test_the_parts_of_one_answer_have_one_weight():
    call = {"from": "function_call", "value": '{"name": "hava"}', "weight": 0}
    row = {
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!", "weight": 1}, call]
    }
    assert issues(row) == [("bad-weight", "message 3 continues an answer that has another weight")]


def test_a_mapping_onto_a_field_that_the_row_has_already_is_refused():
    with pytest.raises(IssueError, match="the row has 'prompt' itself, and the mapping takes 'soru' for it"):
        detect_format({"prompt": "?", "soru": "?", "answer": "!"}, {"prompt": "soru"})


def test_all_problems_of_a_row_are_told_at_once():
    row = {
        "messages": [
            {"role": "user", "content": 1, "ad": "x"},
            {"role": "assistant", "content": "!", "weight": 2},
        ],
        "not": 1,
    }
    kinds = [kind for kind, _ in issues(row)]
    assert kinds == ["unknown-field", "unknown-field", "bad-content", "bad-weight"]


def test_with_fix_unknown_fields_become_metadata_and_reasoning_is_dropped():
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "2"}]
    messages = [
        {"role": "user", "content": "1+1?", "ad": "x"},
        {"role": "assistant", "content": parts, "weight": 3},
    ]
    parsed = parse_row({"messages": messages, "puan": 5}, "openai", fix=True)
    assert parsed.conversations == [ask("1+1?", "2", metadata={"puan": 5})]
    assert (parsed.issues, len(parsed.fixes)) == ([], 4)


@pytest.mark.parametrize(
    ("format_name", "conversation", "what"),
    [
        ("alpaca", ask("?", "!", tools=(WEATHER,)), "tools"),
        ("alpaca", Conversation((ChatMessage("user", "?"), ChatMessage("assistant", "!", weight=0))), "weights"),
        ("alpaca", Conversation((ChatMessage("developer", "d"), *ask("?", "!").messages)), "other messages"),
        ("self-instruct", Conversation((ChatMessage("system", "s"), *ask("?", "!").messages)), "a system message"),
        ("self-instruct", Conversation(ask("?", "!").messages * 2), "more than one answer"),
        ("sharegpt", Conversation((ChatMessage("developer", "d"), *ask("?", "!").messages)), "developer"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_an_error(format_name: str, conversation: Conversation, what: str):
    with pytest.raises(IssueError, match=f"the format {format_name} cannot hold .*{what}"):
        to_row(conversation, format_name)


TEXTS = ["Işık", "ç\n\nğ", '“tırnak” ve "bu"', "a;b,c\td", "{}", "[1]", "🌿 {", " baş", "null", "İ" * 50]


def random_conversation(generator: random.Random, *, plain: bool) -> Conversation:
    """A sound conversation; `plain` ones have neither tools nor weights."""
    text = lambda: generator.choice(TEXTS) + str(generator.randrange(100))  # noqa: E731
    weight = lambda: None if plain else generator.choice([None, 0, 1])  # noqa: E731
    messages = [ChatMessage("system", text())] if generator.random() < 0.5 else []
    if not plain and generator.random() < 0.2:
        messages.append(ChatMessage("developer", text()))
    tools = () if plain or generator.random() < 0.5 else (WEATHER,)
    for _ in range(generator.randint(1, 3)):
        messages.append(ChatMessage("user", text()))
        if tools and generator.random() < 0.7:
            named = generator.random() < 0.5
            calls = tuple(
                ToolCall("hava", {"şehir": text()}, f"c{i}" if named else "")
                for i in range(generator.randint(1, 3))
            )
            messages.append(ChatMessage("assistant", generator.choice(["", text()]), calls, weight=weight()))
            messages += [ChatMessage("tool", text(), tool_call_id=call.id) for call in calls]
        messages.append(ChatMessage("assistant", text(), weight=weight()))
    metadata = {"id": generator.choice([3, "x", 2.5]), "özel": [text()]} if generator.random() < 0.5 else {}
    return Conversation(tuple(messages), tools, metadata)


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_written_is_read_back_the_same(format_name: str):
    generator = random.Random(7)
    held = 0
    for number in range(400):
        conversation = random_conversation(generator, plain=number % 2 == 0)
        assert check_conversation(conversation) == []
        try:
            row = to_row(conversation, format_name)
        except IssueError:
            continue
        held += 1
        row = json.loads(json.dumps(row))
        assert detect_format(row) == format_name
        assert parse_conversations(row, format_name) == [conversation]
    assert held == {"openai": 400, "prompt": 400}.get(format_name, held) and held > 25


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_files_of_each_kind_are_read_back_the_same(format_name: str, suffix: str, tmp_path: Path):
    generator = random.Random(8)
    conversations = [random_conversation(generator, plain=number % 2 == 0) for number in range(60)]
    if suffix in (".csv", ".tsv"):  # where an id is text
        conversations = [
            Conversation(one.messages, one.tools, {k: v for k, v in one.metadata.items() if k != "id"})
            for one in conversations
        ]
    path = tmp_path / f"a{suffix}"
    rows, issues = to_rows(conversations, format_name, path)
    write_rows(rows, path)
    held = [one for one in conversations if not to_rows([one], format_name, path)[1]]
    found = read_conversations([path])
    assert (found.issues, len(rows) + len(issues)) == ([], 60)
    assert [Conversation(one.messages, one.tools, one.metadata) for one in found.conversations] == held
