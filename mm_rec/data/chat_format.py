"""The chat format under the names of the user's documents: `ChatMessage`, `ChatFormatter`, `ChatDataset`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.issues import IssueError, format_issues
from mm_rec.data.conversations.row_formats import parse_row
from mm_rec.errors import DataError
from mm_rec.tokenizers.chat_template import find_chat_template
from mm_rec.tokenizers.special_tokens import ENDOFTEXT

__all__ = ["ChatDataset", "ChatFormatter", "ChatMessage", "Conversation", "ToolCall", "create_chat_example"]

Messages = Sequence[ChatMessage | Mapping[str, Any]]


def create_chat_example() -> dict[str, Any]:
    """One row of a fine-tuning file in OpenAI's format."""
    return {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is Python?"},
            {"role": "assistant", "content": "Python is a programming language."},
        ]
    }


def to_chat_messages(messages: Messages) -> list[ChatMessage]:
    """Messages from objects or OpenAI's dicts; raises DataError for what is not one."""
    result: list[ChatMessage] = []
    for message in messages:
        if isinstance(message, ChatMessage):
            result.append(message)
            continue
        parsed = parse_row({"messages": [message]}, "openai")
        if parsed.issues:
            raise IssueError(parsed.issues)
        result += parsed.conversations[0].messages
    return result


class ChatDataset:
    """The conversations of a file of any format, as `{"messages": [ChatMessage, …]}` items.

    Raises DataError that lists every problem of the file.
    """

    def __init__(self, path: Path | str) -> None:
        found = read_conversations([path])
        if found.issues:
            raise DataError(f"{len(found.issues)} problems:\n{format_issues(found.issues)}", path)
        self.conversations = found.conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        conversation = self.conversations[index]
        return {"messages": list(conversation.messages), "tools": list(conversation.tools)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class ChatFormatter:
    """Conversations as text, in one of the chat layouts, without a tokenizer."""

    def __init__(self, layout: str = "default", eos_token: str = ENDOFTEXT) -> None:
        self.layout = find_chat_template(layout)
        self.eos_token = self.layout.eot_token or eos_token

    def format_messages(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The text of messages; with `add_generation_prompt` up to where the assistant's next answer begins."""
        values: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "eos_token": self.eos_token,
        }
        rendered: Any = render_jinja_template(
            conversations=[[message.to_template() for message in to_chat_messages(messages)]],
            chat_template=self.layout.template,
            **values,
        )
        return str(rendered[0][0])

    def create_training_pair(self, messages: Messages) -> tuple[str, str]:
        """(input, target) of the last answer: what the model is given, and what it must say, its end included."""
        read = to_chat_messages(messages)
        if not read or read[-1].role != "assistant":
            raise DataError("the last message must be the assistant's: it is what is to be learnt")
        prompt = self.format_messages(read[:-1], add_generation_prompt=True)
        whole = self.format_messages(read)
        return prompt, whole[len(prompt) :].rstrip("\n")
