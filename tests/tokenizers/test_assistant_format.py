"""The form of calls and reasoning, found in templates of our own and of published families, and read back."""

from __future__ import annotations

import json
import random
import re

import pytest
from published_templates import CALLING, CALLS, IDS, PUBLISHED, REASONING, wear
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.errors import ConfigError
from mm_rec.tokenizers.assistant_format import AssistantReply, assistant_format
from mm_rec.tokenizers.chat_template import TEMPLATES, prepare_for_chat


@pytest.mark.parametrize("layout", TEMPLATES)
def test_a_call_may_hold_the_text_that_closes_a_call(tokenizer: PreTrainedTokenizerBase, layout: str) -> None:
    prepare_for_chat(tokenizer, layout)
    calls = [
        {"name": "write", "arguments": {"text": 'a</tool_call>\n<tool_call>{"name": "b", "arguments": {}}'}},
        {"name": "write", "arguments": {"text": "</tool_call>", "more": {"<tool_call>": [1, "}"]}}},
    ]
    message = {"role": "assistant", "content": "Here.", "tool_calls": calls}
    said = str(tokenizer.apply_chat_template([{"role": "user", "content": "?"}, message], tokenize=False))
    reply = said.strip().removesuffix(str(tokenizer.eos_token)).partition("Here.")
    assert assistant_format(tokenizer).parse("".join(reply[1:])) == AssistantReply(
        "Here.", calls=tuple(calls)
    )


def test_text_around_calls_of_chatml_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    prepare_for_chat(tokenizer, "chatml")
    call = {"name": "saat", "arguments": {}}
    written = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    form = assistant_format(tokenizer)
    assert form.parse(f" a\n{written}\nb{written}c ") == AssistantReply("a\n\nbc", calls=(call, call))
    assert form.parse("a </tool_call> b") == AssistantReply("a </tool_call> b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name": "saat", "arguments": {}}', "is not closed by </tool_call>"),
        ('<tool_call>{"name": "saat", "arguments": {}} x</tool_call>', "is not closed by </tool_call>"),
        ('<tool_call>{"name": "saat", "arg', "is not JSON"),
        ("<tool_call></tool_call>", "is not JSON"),
        ('<tool_call>{"name": "saat"}</tool_call>', 'is not {"name": …, "arguments": {…}}'),
    ],
)
def test_a_call_of_chatml_that_is_not_whole_is_said(
    tokenizer: PreTrainedTokenizerBase, text: str, reason: str
) -> None:
    prepare_for_chat(tokenizer, "chatml")
    with pytest.raises(ValueError, match=re.escape(reason)):
        assistant_format(tokenizer).parse(text)


TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, "description": ""}}
    for name, _ in CALLS
)


def calls_of(published: str) -> tuple[ToolCall, ...]:
    """CALLS, or the first one alone where a family's messages take one."""
    made = tuple(ToolCall(name, given, one) for (name, given), one in zip(CALLS, IDS, strict=True))
    return made if "saat" in published else made[:1]


@pytest.mark.parametrize("name", CALLING)
def test_calls_of_a_published_template_are_read_back(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    published = wear(tokenizer, name)
    form = assistant_format(tokenizer).require_calls()
    asked, calls = [ChatMessage("user", "Hava?")], calls_of(published.calls)
    answered = [*asked, ChatMessage("assistant", "", calls)]
    if (
        name != "llama_pythonic"
    ):  # its template writes texts without their quotes, which no reader could tell apart
        assert published.calls in conversation_text(tokenizer, Conversation(tuple(answered), TOOLS))
    expected = tuple({"name": call.name, "arguments": dict(call.arguments)} for call in calls)
    assert assistant_format(tokenizer).parse(published.calls) == AssistantReply("", calls=expected)
    assert (form.call_separator is None) == (len(calls) == 1)
    assert form.writes_ids == (IDS[0] in published.calls)
    assert assistant_format(tokenizer).parse("Soğuk.") == AssistantReply("Soğuk.")


@pytest.mark.parametrize("name", CALLING)
def test_results_of_calls_follow_in_a_published_template(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Whatever ids a client gave: OpenAI's are written as nine letters where a template asks for these."""
    published = wear(tokenizer, name)
    calls = [
        ToolCall(call.name, call.arguments, f"call_{number}")
        for number, call in enumerate(calls_of(published.calls))
    ]
    results = [ChatMessage("tool", f"sonuç {call.id}", tool_call_id=call.id) for call in calls]
    messages = [ChatMessage("user", "Hava?"), ChatMessage("assistant", "", tuple(calls)), *results]
    text = prompt_text(tokenizer, messages, TOOLS)
    form = assistant_format(tokenizer).require_calls()
    taken = [form.to_template_message(message.to_template()) for message in messages]
    options = {"add_generation_prompt": True, "tokenize": False}
    if name != "deepseek_r1":  # whose template asks for content that is none, which transformers leaves out
        assert text == tokenizer.apply_chat_template(taken, tools=list(TOOLS), **options)
    assert all(result.content in text for result in results)
    if IDS[0] in published.calls:
        written = re.findall(r'"(?:call_)?id": "(\w+)"', text)
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in written)
        assert written[:2] == written[2:] and len(set(written)) == 2  # a result names its call


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_of_a_published_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    published = wear(tokenizer, name)
    assert published.thought is not None
    begin, end = published.thought
    form = assistant_format(tokenizer)
    prompt = prompt_text(tokenizer, [ChatMessage("user", "Hava?")])
    is_open = prompt.rstrip().endswith(begin.strip())
    assert form.opens_reasoning(prompt) == is_open
    said = ("" if is_open else begin) + f"Kış geldi.{end}Soğuk."
    assert form.parse(said, prompt) == AssistantReply("Soğuk.", "Kış geldi.")
    assert form.parse("Soğuk.") == AssistantReply("Soğuk.")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in CALLING])
def test_a_template_without_calls_says_so(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    wear(tokenizer, name)
    with pytest.raises(
        ConfigError, match=r"does not tell the model which tools there are.*Leave the tools out"
    ):
        assistant_format(tokenizer).require_calls()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("a='it\\'s', b=True, c=None", {"a": "it's", "b": True, "c": None}),
        ('a="x, b=1)", b=[1, {"c": "("}]', {"a": "x, b=1)", "b": [1, {"c": "("}]}),
        ("a=true, b=null, c=(1, 2)", {"a": True, "b": None, "c": (1, 2)}),
        ("şehir='Iğdır',\n  x=-1.5", {"şehir": "Iğdır", "x": -1.5}),
    ],
)
def test_calls_in_the_form_of_python(
    tokenizer: PreTrainedTokenizerBase, text: str, arguments: object
) -> None:
    wear(tokenizer, "olmo3")
    said = f"<function_calls>\nf({text})\n</function_calls>"
    [call] = assistant_format(tokenizer).parse(said).calls
    assert call == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("olmo3", "<function_calls>\nf(a=__import__('os'))\n</function_calls>"),
        ("olmo3", "<function_calls>\nf(a=1\n</function_calls>"),
        ("olmo3", "<function_calls>\nf(a=1)"),
        ("mistral_nemo", '[TOOL_CALLS][{"name": "f"}]'),
        (
            "deepseek_r1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n[1]\n```",
        ),
    ],
)
def test_a_call_that_is_not_well_formed_is_said(
    tokenizer: PreTrainedTokenizerBase, name: str, text: str
) -> None:
    wear(tokenizer, name)
    with pytest.raises(ValueError, match="call"):
        assistant_format(tokenizer).parse(text)


@pytest.mark.parametrize("name", ["llama3.2", "llama_pythonic"])
@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"name": 3}', "Şöyle: [f(a=1)]", '{"a": {"name": "f"}}', "[f(x) for x in y]"]
)
def test_what_only_looks_like_a_call_is_text(
    tokenizer: PreTrainedTokenizerBase, name: str, text: str
) -> None:
    wear(tokenizer, name)
    assert assistant_format(tokenizer).parse(text) == AssistantReply(text)


def test_calls_that_nothing_announces_are_no_form(tokenizer: PreTrainedTokenizerBase) -> None:
    wear(tokenizer, "olmo3")
    plain = (
        str(tokenizer.chat_template).replace("<function_calls>\\n", "").replace("\\n</function_calls>", "")
    )
    tokenizer.chat_template = plain
    assert "function_calls" not in plain.partition("messages %}")[2]
    assert assistant_format(tokenizer).calls is None


def test_random_templates_are_never_a_traceback(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template is a program: what fails in it means that there is no form of calls."""
    pieces = ["{{ message.content }}", "{{ message.tool_calls }}", "{{ tools | tojson }}", "{{ 1 / 0 }}", "{{ x.y.z }}",
              "{{ message.content + 1 }}", "{% for c in message.tool_calls %}{{ c.function.name }}{% endfor %}",
              "{{ raise_exception('no') }}", "<think>", "</think>", "{{ message.reasoning_content }}"]  # fmt: skip
    for seed in range(60):
        chosen = random.Random(seed).sample(pieces, 4)
        tokenizer.chat_template = "{% for message in messages %}" + "".join(chosen) + "{% endfor %}"
        form = assistant_format(tokenizer)
        assert form.calls is None and form.no_tool_calls_reason
