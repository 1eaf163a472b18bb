"""The one conversation type: every format is read into it, every template renders it, every answer is added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls; `arguments` as an object, `id` to find its result by ("" where unknown)."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. `weight` 0 keeps an answer out of the loss (OpenAI's field); None leaves it to `train_on`.

    `tool_calls` are the assistant's; `tool_call_id` says whose result a tool message is. `reasoning` is what the
    assistant thought before it answered; templates that keep it say so.
    """

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    weight: int | None = None
    reasoning: str = ""

    def to_template(self) -> dict[str, Any]:
        """The message as chat templates take it: arguments are an object, not text."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, the tools that may be called (OpenAI's definitions), and what else is known of them.

    `location` is the file and line that it was read from; `metadata` goes along wherever it is written.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    location: str = ""

    def with_messages(self, messages: Sequence[ChatMessage]) -> Self:
        """The same with other messages."""
        return type(self)(tuple(messages), self.tools, self.metadata, self.location)
