"""Render a conversation to token ids and its loss mask: one path for training, chat and every check.

Shapes: T tokens of a conversation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.sections import TrainOn
from mm_rec.errors import DataError, TokenizerError, UserError
from mm_rec.tokenizers.assistant_format import AssistantFormat, assistant_format
from mm_rec.tokenizers.chat_template import TEMPLATES, has_generation_markers, require_template
from mm_rec.tokenizers.loading import encoder, special_token_pattern
from mm_rec.tokenizers.template_rendering import Span, common_prefix_length, render_messages
from mm_rec.tokenizers.tool_call_format import ToolCallFormat

_ENCODE_BATCH = 1024  # conversations encoded at once


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A training example: its text, token ids (T,) int32 and loss mask (T,) bool, True where a token is trained on."""

    text: str
    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, train_on: TrainOn = "all"
) -> TokenizedExample:
    """Render one conversation; raises DataError where the template refuses it."""
    return next(render_batch(tokenizer, [conversation], train_on))


def render_batch(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], train_on: TrainOn = "all"
) -> Iterator[TokenizedExample]:
    """Render conversations in order, encoding on all threads.

    Learnt are the tokens that the assistant writes, the end of its turn with them: of all answers that have not the
    weight 0, or of the last one alone. Raises DataError naming the conversation that the template refuses.
    """
    for first in range(0, len(conversations), _ENCODE_BATCH):
        group = conversations[first : first + _ENCODE_BATCH]
        texts = [render_with_spans(tokenizer, one) for one in group]
        encodings = encode_texts(tokenizer, [text for text, _ in texts])
        for conversation, (text, spans), encoding in zip(group, texts, encodings, strict=True):
            loss_mask = np.zeros(len(encoding.ids), dtype=bool)
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            for start, stop in select_loss_spans(conversation, spans, train_on):
                loss_mask |= (offsets[:, 0] >= start) & (offsets[:, 0] < stop)
            yield TokenizedExample(text, np.array(encoding.ids, dtype=np.int32), loss_mask)


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of messages up to where the assistant's next answer begins."""
    return _render(tokenizer, Conversation(tuple(messages), tuple(tools)), add_generation_prompt=True)[0]


def chat_prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """The ids of messages up to where the assistant's next answer begins: what chat and the server read."""
    ids: list[int] = encode_texts(tokenizer, [prompt_text(tokenizer, messages, tools)])[0].ids
    return ids


def reject_special_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> None:
    """Raise UserError where a text is no Unicode, or holds a special token, which would end or begin a message."""
    special = special_token_pattern(tokenizer)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes that a terminal could not decode arrive so
            raise UserError(
                f"a message is not UTF-8 ({error}). Set the terminal to UTF-8, or mend it"
            ) from error
        if found := special.search(text):
            raise UserError(
                f"a message cannot hold {found[0]}, which begins or ends messages. Write it otherwise"
            )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Encoding]:
    """Encode rendered texts with their offsets; special tokens in them are parsed, none is added."""
    encodings: list[Encoding] = encoder(tokenizer).encode_batch(list(texts), add_special_tokens=False)
    return encodings


def select_loss_spans(
    conversation: Conversation, spans: Sequence[Span | None], train_on: TrainOn
) -> list[Span]:
    """Select the assistant's spans (one a message; None where not known exactly) that count for the loss."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if len(spans) != len(answers):
        raise TokenizerError(
            f"the chat template marks {len(spans)} answers where there are {len(answers)} "
            f"({conversation.location or 'a conversation'}). It needs one {{% generation %}} for each assistant message"
        )
    chosen = [span for span, answer in zip(spans, answers, strict=True) if answer.weight != 0]
    if train_on == "last":
        chosen = chosen[-1:] if answers and answers[-1].weight != 0 else []
    return [span for span in chosen if span is not None]


def conversation_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The text of a conversation."""
    return _render(tokenizer, conversation)[0]


def render_with_spans(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> tuple[str, Sequence[Span | None]]:
    """The text of a conversation, and the span of it that each of the assistant's messages is: as the template marks
    them, or found by rendering what comes before each.

    None stands for an answer before the last that the template writes otherwise once more follows (without its
    thinking, for example). Raises TokenizerError where the last answer is not found either.
    """
    if has_generation_markers(require_template(tokenizer, conversation.tools)):
        return _render(tokenizer, conversation, return_assistant_tokens_mask=True)
    text = conversation_text(tokenizer, conversation)
    places = [n for n, message in enumerate(conversation.messages) if message.role == "assistant"]
    special = special_token_pattern(tokenizer)
    form = assistant_format(tokenizer)
    spans = [_find_answer_span(tokenizer, conversation, index, text, special, form) for index in places]
    if spans and spans[-1] is None:
        raise TokenizerError(
            "this tokenizer's chat template does not write messages one after the other, each answer ended by a "
            "special token, so it cannot be known what is to be learnt "
            f"({conversation.location or 'a conversation'}). Choose one that does: --template {', '.join(TEMPLATES)}"
        )
    return text, spans


def _find_answer_span(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    index: int,
    text: str,
    special: re.Pattern[str],
    form: AssistantFormat,
) -> Span | None:
    """Find the message at `index` in the text of the whole conversation, with the token that ends it.

    It begins where the prompt for it ends. It ends with the first special token after what it says (after its calls,
    with the last): there the model is stopped, so what the template puts after it (a line's end) is not learnt.
    """
    message = conversation.messages[index]
    try:
        before = conversation.with_messages(conversation.messages[:index])
        prompt = _render(tokenizer, before, add_generation_prompt=True)[0]
        if form.reasoning is not None:  # begun in the prompt, and left out of the message
            prompt = prompt.removesuffix(form.reasoning.opening_in(prompt))
        through = conversation_text(tokenizer, conversation.with_messages(conversation.messages[: index + 1]))
    except DataError:  # it may ask for a question first
        return None
    same = common_prefix_length(through, text)
    if not text.startswith(prompt) or same <= len(prompt):
        return None
    said, start = message.content.strip(), len(prompt)
    if form.reasoning is not None:
        end = form.reasoning.end.strip()
        thought = text.find(end, start, same)
        start = start if thought < 0 else thought + len(end)
    found = text.find(said, start, same)
    if found < 0:
        return None
    specials = list(special.finditer(text, found + len(said), same))
    ends = [one.end() for one in specials if one[0] == form.eot_token] or [one.end() for one in specials]
    if not ends:
        return None
    return len(prompt), ends[-1] if message.tool_calls else ends[0]


def _render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **options: bool
) -> tuple[str, list[Span]]:
    """The text, and with return_assistant_tokens_mask the spans that the assistant writes."""
    template = require_template(tokenizer, conversation.tools)
    messages = _template_messages(tokenizer, conversation.messages)
    try:
        return render_messages(
            template, tokenizer.special_tokens_map, messages, conversation.tools, **options
        )
    except DataError as error:
        raise DataError(str(error), conversation.location or None) from error


def _template_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage]
) -> list[dict[str, Any]]:
    """Messages as the template takes them: calls in its own style."""
    calls = None
    if any(message.tool_calls or message.tool_call_id for message in messages):
        calls = assistant_format(tokenizer).calls
    if calls is None:
        return [message.to_template() for message in messages]
    return [calls.to_template_message(message.to_template()) for message in _add_call_ids(messages, calls)]


def _add_call_ids(messages: Sequence[ChatMessage], form: ToolCallFormat) -> Iterator[ChatMessage]:
    """Messages whose calls and results without ids have some, in order, where the template writes ids."""
    made = itertools.count()
    waiting: list[str] = []
    for message in messages:
        if form.writes_ids and message.tool_calls:
            calls = [replace(call, id=call.id or f"call {next(made)}") for call in message.tool_calls]
            waiting = [call.id for call in calls]
            yield replace(message, tool_calls=tuple(calls))
        elif form.writes_ids and message.role == "tool":
            answered = message.tool_call_id or next(iter(waiting), f"call {next(made)}")
            waiting = [one for one in waiting if one != answered]
            yield replace(message, tool_call_id=answered)
        else:
            yield message
