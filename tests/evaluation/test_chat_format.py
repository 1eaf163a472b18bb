"""The form of a reply: what must hold, and what is none of its business."""

from __future__ import annotations

import pytest

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.evaluation import chat_format
from mm_rec.evaluation.chat_format import format_fault

TOOLS = (
    {"type": "function", "function": {"name": "weather", "parameters": {}}},
    {"name": "clock"},
)
LIST = "Three things:\n1. bread\n2) milk\n 3. tea"


@pytest.mark.parametrize(
    ("given", "reply", "fault"),
    [
        ("Evet.", "Hayır.", None),
        ("Evet.", "1. Hayır\n2. Hayır", None),  # a list that was not asked for is no fault
        ("Evet.", "", chat_format.EMPTY),
        ("Evet.", "Evet <|user|> sonra?", chat_format.SPECIAL_TOKEN),
        (LIST, "1. a\n2. b\n3. c", None),
        (LIST, "1. a\n2. b", chat_format.OTHER_LIST),
        (LIST, "1. a\n2. b\n4. c", chat_format.OTHER_LIST),
        (LIST, "bread, milk, tea", chat_format.OTHER_LIST),
        ("In 1999. Then.\n2. no list", "anything", None),
        ('{"a": 1}', '{"b": [2]}', None),
        ('{"a": 1}', "[1]", chat_format.OTHER_JSON),
        ('{"a": 1}', "{'a': 1}", chat_format.OTHER_JSON),
        ("[1, 2]", " [3]\n", None),
        ("[1, 2]", "[" * 100_000, chat_format.OTHER_JSON),
        ("[sic] not JSON", "anything", None),
    ],
)
def test_form_of_a_text(given: str, reply: str, fault: str | None) -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant", given)))
    assert format_fault(reply, [], conversation, ["<|user|>", "<|endoftext|>"]) == fault


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["weather"], None),
        (["clock", "weather"], None),
        (["weather", "wether"], chat_format.UNKNOWN_TOOL),
        ([], chat_format.EMPTY),
    ],
)
def test_calls_name_a_defined_tool(names: list[str], fault: str | None) -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant")), TOOLS)
    assert format_fault("", [{"name": name, "arguments": {}} for name in names], conversation, []) == fault


def test_a_call_where_there_is_no_tool_is_a_fault() -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant", "Yes.")))
    assert format_fault("", [{"name": "weather"}], conversation, []) == chat_format.UNKNOWN_TOOL
