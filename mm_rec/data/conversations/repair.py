"""Repair conversations on request: join, cut and clean where that changes no answer, leave out where it would."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.validation import check_conversation, is_empty, token_pattern

Messages = list[ChatMessage]


def repair_conversation(
    conversation: Conversation, special_tokens: Collection[str] = ()
) -> tuple[Conversation | None, list[str]]:
    """The repaired conversation and what was done to it; None and why where it cannot be repaired.

    A sound one is given back as it is.
    """
    issues = check_conversation(conversation, special_tokens)
    if not issues:
        return conversation, []
    steps: list[tuple[str, Callable[[Messages], Messages]]] = [
        ("special tokens taken out of messages", lambda messages: _without_tokens(messages, special_tokens)),
        ("system messages made one, at the beginning", _one_system),
        ("messages of one role joined", _joined),
        ("answers before the first question and questions after the last answer cut", _cut_ends),
        ("questions without an answer and answers without a question cut", _cut_empty),
    ]
    messages, done = list(conversation.messages), []
    for what, step in steps:
        mended = step(messages)
        if mended != messages:
            messages = mended
            done.append(what)
    tools = tuple(_object_parameters(tool) for tool in conversation.tools)
    if tools != conversation.tools:
        done.append("parameters of the type 'dict' called 'object'")
    result = replace(conversation, messages=tuple(messages), tools=tools)
    left = check_conversation(result, special_tokens)
    if not left:
        return result, done
    reasons = left if messages else issues
    return None, [f"left out: {kind}" for kind in dict.fromkeys(issue.kind for issue in reasons)]


def _object_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The definition with JSON schema's name for the type of its parameters, where it has Python's."""
    function = tool.get("function")
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(parameters, Mapping) or parameters.get("type") != "dict":
        return tool
    return {**tool, "function": {**tool["function"], "parameters": {**parameters, "type": "object"}}}


def _without_tokens(messages: Messages, special_tokens: Collection[str]) -> Messages:
    """Special tokens taken out of contents, until none is made by what stood around another."""
    if not special_tokens:
        return messages
    pattern = token_pattern(frozenset(special_tokens))
    mended = []
    for message in messages:
        content = message.content
        while pattern.search(content):
            content = pattern.sub("", content)
        mended.append(replace(message, content=content))
    return mended


def _one_system(messages: Messages) -> Messages:
    """One system and one developer message at most, first and not empty."""
    first: Messages = []
    for role in ("system", "developer"):
        texts = [message.content for message in messages if message.role == role]
        content = _paragraphs(texts)
        first += [ChatMessage(role, content)] if content else []
    return [*first, *(message for message in messages if message.role not in ("system", "developer"))]


def _joined(messages: Messages) -> Messages:
    """Neighbours of one role as one message, unless the first calls tools or they differ in weight."""
    joined: Messages = []
    for message in messages:
        before = joined[-1] if joined else None
        if (
            before is not None
            and message.role in ("user", "assistant")
            and (before.role, before.weight, before.tool_calls) == (message.role, message.weight, ())
        ):
            joined[-1] = replace(message, content=_paragraphs([before.content, message.content]))
        else:
            joined.append(message)
    return joined


def _paragraphs(texts: Sequence[str]) -> str:
    return "\n\n".join(text for text in texts if text.strip())


def _cut_ends(messages: Messages) -> Messages:
    """From the first question, system messages before it, to the last answer."""
    start = next((i for i, message in enumerate(messages) if message.role not in ("system", "developer")), 0)
    systems, body = messages[:start], messages[start:]
    while body and body[0].role in ("assistant", "tool"):
        body = body[1:]
    while body and body[-1].role in ("user", "tool"):
        body = body[:-1]
    return [*systems, *body] if body else []


def _cut_empty(messages: Messages) -> Messages:
    """Questions go with all that answers them where one of these messages is empty."""
    starts = [number for number, message in enumerate(messages) if message.role == "user"]
    if not starts:
        return messages
    kept = messages[: starts[0]]
    for start, stop in zip(starts, [*starts[1:], len(messages)], strict=True):
        if not any(map(is_empty, messages[start:stop])):
            kept += messages[start:stop]
    return kept if len(kept) > starts[0] else []
