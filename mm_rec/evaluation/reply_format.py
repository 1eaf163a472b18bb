"""Checks of a reply's format against the given answer's; the content is not compared."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mm_rec.data.conversations.conversation import Conversation

EMPTY = "nothing was said"
UNREADABLE_CALL = "a tool call cannot be read"
UNKNOWN_TOOL = "a tool is called that is not defined"
SPECIAL_TOKEN = "a special token stands in the text"
OTHER_LIST = "not a numbered list of as many items as the given answer"
OTHER_JSON = "not JSON of the same kind as the given answer"

_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+\S", re.MULTILINE)


def format_error(
    content: str,
    calls: Sequence[Mapping[str, Any]],
    conversation: Conversation,
    special_tokens: Collection[str],
) -> str | None:
    """Return what is wrong with the format of a reply, or None; the conversation ends with the given answer.

    It must say something, call only tools of the conversation, hold no special token, and be a numbered list of as many
    items, or JSON (an object, an array), where the given answer is one.
    """
    given = conversation.messages[-1].content
    if not content and not calls:
        return EMPTY
    if any(call["name"] not in tool_names(conversation) for call in calls):
        return UNKNOWN_TOOL
    if any(token in content for token in special_tokens):
        return SPECIAL_TOKEN
    if (items := _list_items(given)) and _list_items(content) != items:
        return OTHER_LIST
    if (kind := _json_kind(given)) and _json_kind(content) is not kind:
        return OTHER_JSON
    return None


def tool_names(conversation: Conversation) -> set[str]:
    """Return the names of the tools that a conversation defines."""
    return {str(tool.get("function", tool).get("name")) for tool in conversation.tools}


def _list_items(text: str) -> int:
    """Count the items of a list numbered 1, 2, …; 0 where the text holds no list of two or more."""
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    return len(numbers) if len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)) else 0


def _json_kind(text: str) -> type | None:
    """Return dict or list where the text is a JSON object or array."""
    try:
        value = json.loads(text) if text.strip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None
    return type(value) if isinstance(value, dict | list) else None
