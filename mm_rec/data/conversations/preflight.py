"""Checks of all conversations before the first step: each can be rendered, fits, and has tokens to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.issues import Fix, Issue
from mm_rec.data.conversations.rendering import (
    TokenizedExample,
    encode_texts,
    prompt_text,
    render,
    render_batch,
)
from mm_rec.data.sections import TooLong, TrainOn
from mm_rec.errors import ConfigError, DataError, TokenizerError
from mm_rec.tokenizers.assistant_format import assistant_format, eot_token_ids


@dataclass(slots=True)
class Preflight:
    """Conversations that can be trained on, tokenized; and the issues and repairs of the others."""

    conversations: list[Conversation] = field(default_factory=list)
    rendered: list[TokenizedExample] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)


def preflight(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    train_on: TrainOn = "all",
    max_length: int | None = None,
    too_long: TooLong = "refuse",
) -> Preflight:
    """Render all conversations and find those that teach nothing, no end of turn, or are over `max_length` tokens.

    With too_long="turns" the oldest exchanges of a long conversation are cut, and its last one stays.
    """
    result = Preflight()
    _require_fitting_layout(tokenizer)
    ends = eot_token_ids(tokenizer)
    tidied = [_strip_answers(conversation, result.fixes) for conversation in conversations]
    for whole, ids in _rendered(tokenizer, tidied, train_on, result.issues):
        conversation, rendered = whole, ids
        if max_length is not None and len(ids.ids) > max_length and too_long == "turns":
            shorter = _drop_oldest_turns(tokenizer, whole, train_on, max_length)
            conversation, rendered = shorter or (whole, ids)
            if cut := len(whole.messages) - len(conversation.messages):
                result.fixes.append(Fix(whole.location, f"the {cut} oldest messages were cut"))
        issue = _issue(tokenizer, conversation, rendered, max_length, ends)
        if issue is not None:
            result.issues.append(issue)
        else:
            result.conversations.append(conversation)
            result.rendered.append(rendered)
    return result


def read_train_on(train_on: str, too_long: str) -> tuple[TrainOn, TooLong]:
    """The two choices from what a person typed; raises ConfigError for other words."""
    if train_on not in get_args(TrainOn):
        raise ConfigError(f"--train-on {train_on}: choose {' or '.join(get_args(TrainOn))}")
    if too_long not in get_args(TooLong):
        raise ConfigError(f"--too-long {too_long}: choose {' or '.join(get_args(TooLong))}")
    return cast(TrainOn, train_on), cast(TooLong, too_long)


def _require_fitting_layout(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise TokenizerError where the end of a prompt would be other tokens once an answer follows it."""
    asked = ChatMessage("user", "a")
    text, reasoning = prompt_text(tokenizer, [asked]), assistant_format(tokenizer).reasoning
    opened = "" if reasoning is None else reasoning.opening_in(text)  # which the answer is written without
    prompt = encode_texts(tokenizer, [text.removesuffix(opened)])[0].ids
    try:
        whole = render(tokenizer, Conversation((asked, ChatMessage("assistant", "b")))).ids.tolist()
    except DataError:  # a template of its own that wants other messages
        return
    if whole[: len(prompt)] != prompt:
        raise TokenizerError(
            "this tokenizer joins the end of a prompt with what follows it in this chat layout, so a model would be "
            "asked otherwise than it was taught. Choose another layout: --template default"
        )


def _strip_answers(conversation: Conversation, fixes: list[Fix]) -> Conversation:
    """Without white space before answers, which a tokenizer may join with the line end of the prompt."""
    messages = [
        replace(message, content=message.content.lstrip()) if message.role == "assistant" else message
        for message in conversation.messages
    ]
    if tuple(messages) == conversation.messages:
        return conversation
    fixes.append(Fix(conversation.location, "white space before an answer was cut"))
    return conversation.with_messages(messages)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    train_on: TrainOn,
    issues: list[Issue],
) -> Iterator[tuple[Conversation, TokenizedExample]]:
    """All at once where the template takes them; one by one, noting those that it refuses, where it does not."""
    try:
        yield from zip(conversations, list(render_batch(tokenizer, conversations, train_on)), strict=True)
    except DataError:
        for conversation in conversations:
            try:
                rendered = render(tokenizer, conversation, train_on)
            except DataError as error:
                issues.append(
                    Issue(
                        "refused",
                        conversation.location,
                        str(error).removeprefix(f"{conversation.location}: "),
                    )
                )
            else:
                yield conversation, rendered


def _issue(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    rendered: TokenizedExample,
    max_length: int | None,
    ends: frozenset[int],
) -> Issue | None:
    length, location = len(rendered.ids), conversation.location
    if max_length is not None and length > max_length:
        return Issue("too-long", location, f"it has {length:,} tokens, and {max_length:,} are the most")
    if not rendered.loss_mask[1:].any():
        return Issue("nothing-learnt", location, f"none of its {length:,} tokens is learnt")
    # Where a stretch of the loss mask ends, its last token must be one that generation stops at.
    last = rendered.loss_mask.copy()
    last[:-1] &= ~rendered.loss_mask[1:]
    if not np.isin(rendered.ids[last], list(ends)).all():
        return Issue("end-not-learnt", location, f"an answer in it does not end with {tokenizer.eos_token}")
    return None


def _drop_oldest_turns(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, train_on: TrainOn, max_length: int
) -> tuple[Conversation, TokenizedExample] | None:
    """The conversation from the earliest exchange on with which it fits, system messages kept; None where none does."""
    messages = conversation.messages
    users = [number for number, message in enumerate(messages) if message.role == "user"]
    leading = messages[: users[0]] if users else messages
    low, high = 1, len(users)  # the exchange to begin with, by bisection: fewer exchanges are never longer
    found = None
    while low < high:
        middle = (low + high) // 2
        shorter = conversation.with_messages([*leading, *messages[users[middle] :]])
        rendered = render(tokenizer, shorter, train_on)
        if len(rendered.ids) <= max_length:
            found, high = (shorter, rendered), middle
        else:
            low = middle + 1
    return found
