"""Rendering of messages by a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from mm_rec.errors import DataError

Span = tuple[int, int]  # of characters, the end not included
Message = Mapping[str, Any]


def common_prefix_length(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    if other.startswith(one):  # most do; one by one takes long
        return len(one)
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def render_messages(
    template: str,
    special_tokens: Mapping[str, str],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    **options: bool,
) -> tuple[str, list[Span]]:
    """Render messages; returns the text, and with return_assistant_tokens_mask the spans of the assistant's tokens.

    Raises DataError where the template refuses the messages, or fails at them.
    """
    values: dict[str, Any] = {**options, **special_tokens}
    try:
        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=template,
            **values,
        )
    except Exception as error:  # it is a program of its own, and may fail in any way
        raise DataError(f"the chat template refuses this conversation: {error}") from error
    texts, spans = rendered
    return texts[0], list(spans[0]) if spans else []
