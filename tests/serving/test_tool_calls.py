"""An answer's text is cut into text and calls in the same way, however it comes in pieces."""

from __future__ import annotations

import json

import pytest
from serving.parsing import parse_in_pieces

from mm_rec.serving.protocol.response_encoder import _after_reasoning
from mm_rec.serving.protocol.tool_calls import (
    CallsOrJsonParser,
    OutputParser,
    ReasoningParser,
    TextParser,
    ToolCallParser,
)
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.openai_tokenizer import simple_tokenizer
from mm_rec.tokenizers.template_probe import ReasoningFormat
from mm_rec.tokenizers.tool_call_format import ToolCallFormat

WEATHER, NOTHING = ("weather", {"city": 'a "b" }{', "days": [1, {"x": 2}]}), ("nothing", {})
MARKED = {"city": "</tool_call> <tool_call>"}


def written(layout: str, name: str, arguments: object) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    head = f'{{"name": {json.dumps(name)}, '
    return {
        "default": f'<|tool_call|>{head}"arguments": {text}}}',
        "chatml": f'<tool_call>{head}"arguments": {text}}}</tool_call>',
        "llama3": f'{head}"parameters": {text}}}',
    }[layout]


def form_of(layout: str) -> ToolCallFormat:
    tokenizer = simple_tokenizer(2000)
    prepare_for_chat(tokenizer, layout)
    return assistant_format(tokenizer).require_calls()


def read(parser: OutputParser, text: str, seed: int) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in random pieces."""
    parts = parse_in_pieces(parser, text, seed)
    calls: dict[int, list[str]] = {}
    for part in parts:
        if part.kind == "call":
            assert part.call == len(calls) and part.id.startswith("call_")
            calls[part.call] = [part.text, ""]
        elif part.kind == "arguments":
            calls[part.call][1] += part.text
    said = "".join(part.text for part in parts if part.kind == "text")
    return said, [(name, arguments) for name, arguments in calls.values()]


@pytest.mark.parametrize("layout", ["default", "chatml", "llama3"])
@pytest.mark.parametrize("said", ["", "Wait.", "Two\n\nlines < {", "ends with\n"])
@pytest.mark.parametrize("calls", [[], [WEATHER], [NOTHING, WEATHER, NOTHING]])
def test_text_and_calls(layout: str, said: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    text = "\n".join([*([said] if said else []), *(written(layout, *call) for call in calls)])
    text += "\n" if layout == "default" else ""
    expected = [(name, json.dumps(arguments)) for name, arguments in calls]
    form = form_of(layout)
    for seed in range(40):
        assert read(ToolCallParser(form), text, seed) == (said.rstrip("\n"), expected)


def test_what_looks_like_a_call_and_is_none_is_text() -> None:
    for layout, text in {
        "default": 'a {"name": "b", "arguments": {}}',
        "chatml": "a <tool_cal and <tool_",
        "llama3": 'mid-line {"name": "b", "parameters": {}}',
    }.items():
        form = form_of(layout)
        for seed in range(40):
            assert read(ToolCallParser(form), text, seed) == (text, [])


def test_an_argument_may_hold_what_ends_a_call() -> None:
    text, form = written("chatml", "a", MARKED) + "\n" + written("chatml", "b", {}), form_of("chatml")
    for seed in range(40):
        assert read(ToolCallParser(form), text, seed) == (
            "",
            [("a", json.dumps(MARKED)), ("b", "{}")],
        )


@pytest.mark.parametrize("layout", ["default", "chatml", "llama3"])
def test_calls_are_told_from_json_by_their_beginning(layout: str) -> None:
    form, names = form_of(layout), ["weather", "nothing"]
    calls = "\n".join(written(layout, *call) for call in (NOTHING, WEATHER))
    inside = json.dumps({"name": "weather", "text": written(layout, *WEATHER)})
    for seed in range(40):
        told = read(CallsOrJsonParser(form, names), calls, seed)
        assert told == ("", [(name, json.dumps(arguments)) for name, arguments in (NOTHING, WEATHER)])
        for text in (inside, '{"name": "weather", "days": 3}', '{"name": "weather', "[1, 2]", '{"', ""):
            assert read(CallsOrJsonParser(form, names), text, seed) == (text, [])


def test_plain_text_loses_the_line_ends_that_close_it() -> None:
    for seed in range(40):
        assert read(TextParser(), "\n a\n\nb \n\n", seed) == ("\n a\n\nb ", [])


def test_a_line_of_json_that_is_no_call_is_given_out_as_it_comes() -> None:
    parser = ToolCallParser(form_of("llama3"))
    parts = list(parser.push('Rows:\n{"name": "Ayşe", "age": 3}\n{"name": "Ali\nmore'))
    assert "".join(part.text for part in parts) == 'Rows:\n{"name": "Ayşe", "age": 3}\n{"name": "Ali\nmore'
    assert not list(parser.push('\n{"name": "f", "param')) and not parser.calls
    assert [part.kind for part in parser.push('eters": {}}')] == ["call", "arguments"]


def test_log_probabilities_behind_reasoning() -> None:
    told = [{"bytes": list(text.encode())} for text in ("a", "</think>", "\n\n", "a", "b", "\n")]
    assert _after_reasoning(told, "ab") == told[3:] and _after_reasoning(told[:2], "x") == []


THINKING = ReasoningFormat("<think>\n", "\n</think>\n\n")


@pytest.mark.parametrize(
    ("text", "is_open", "thought", "said"),
    [
        ("<think>\nSo.\n\nWell < 3.\n</think>\n\nYes.\n", False, "So.\n\nWell < 3.", "Yes."),
        ("So.\n</think>\n\nYes.", True, "So.", "Yes."),
        ("<think>\nSo.\n</think>\n\nYes.", True, "So.", "Yes."),
        ("<thi", True, "<thi", ""),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>\nSo. </thin", False, "So. </thin", ""),
        ("<think>", False, "", ""),
        ("<thi", False, "", "<thi"),
        (" Yes. <think>", False, "", " Yes. <think>"),
        ("So.", True, "So.", ""),
    ],
)
def test_reasoning_is_told_apart(text: str, is_open: bool, thought: str, said: str) -> None:
    for seed in range(40):
        parts = parse_in_pieces(ReasoningParser(THINKING, is_open, TextParser()), text, seed)
        told = {
            kind: "".join(one.text for one in parts if one.kind == kind) for kind in ("reasoning", "text")
        }
        assert told == {"reasoning": thought, "text": said}
