"""The form of a reply: what must hold, and what is none of its business."""

from __future__ import annotations

import pytest

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.evaluation import reply_format
from mm_rec.evaluation.reply_format import format_error

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
        ("Evet.", "", reply_format.EMPTY),
        ("Evet.", "Evet <|user|> sonra?", reply_format.SPECIAL_TOKEN),
        (LIST, "1. a\n2. b\n3. c", None),
        (LIST, "1. a\n2. b", reply_format.OTHER_LIST),
        (LIST, "1. a\n2. b\n4. c", reply_format.OTHER_LIST),
        (LIST, "bread, milk, tea", reply_format.OTHER_LIST),
        ("In 1999. Then.\n2. no list", "anything", None),
        ('{"a": 1}', '{"b": [2]}', None),
        ('{"a": 1}', "[1]", reply_format.OTHER_JSON),
        ('{"a": 1}', "{'a': 1}", reply_format.OTHER_JSON),
        ("[1, 2]", " [3]\n", None),
        ("[1, 2]", "[" * 100_000, reply_format.OTHER_JSON),
        ("[sic] not JSON", "anything", None),
    ],
)
def test_form_of_a_text(given: str, reply: str, fault: str | None) -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant", given)))
    assert format_error(reply, [], conversation, ["<|user|>", "<|endoftext|>"]) == fault


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["weather"], None),
        (["clock", "weather"], None),
        (["weather", "wether"], reply_format.UNKNOWN_TOOL),
        ([], reply_format.EMPTY),
    ],
)
def test_calls_name_a_defined_tool(names: list[str], fault: str | None) -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant")), TOOLS)
    assert format_error("", [{"name": name, "arguments": {}} for name in names], conversation, []) == fault


def test_a_call_where_there_is_no_tool_is_a_fault() -> None:
    conversation = Conversation((ChatMessage("user", "?"), ChatMessage("assistant", "Yes.")))
    assert format_error("", [{"name": "weather"}], conversation, []) == reply_format.UNKNOWN_TOOL
