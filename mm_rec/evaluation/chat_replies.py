"""Teacher-forced scores of the given answers of conversations, and the model's own replies.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.rendering import TokenizedExample, chat_prompt_ids, render_batch
from mm_rec.errors import CheckpointError, DataError
from mm_rec.evaluation.perplexity import score_tokens
from mm_rec.evaluation.reply_format import UNREADABLE_CALL, format_error
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import stop_ids
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.cross_entropy import IGNORE_INDEX
from mm_rec.models.forward import Batch
from mm_rec.text.words import guess_language
from mm_rec.tokenizers.assistant_format import assistant_format

_ROW_TOKENS = 4096
_BATCH_REPLIES = 32
_BATCH_TOKENS = 32_768

ChatProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation that ends with the given answer, its prompt as ids, and the whole as ids with the loss mask."""

    conversation: Conversation
    language: str
    prompt: list[int]
    rendered: TokenizedExample

    @property
    def reference(self) -> ChatMessage:
        """The given answer."""
        return self.conversation.messages[-1]


@dataclass(frozen=True, slots=True)
class TeacherForcedScores:
    """Prediction of a given answer: nats, predicted tokens, and those that were the likeliest."""

    nats: float
    tokens: int
    right: int


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A reply of the model: its tokens' text, the message and the calls in it, and what is wrong with its format."""

    text: str
    content: str
    calls: list[dict[str, Any]]
    tokens: int
    ended: bool
    fault: str | None


def make_examples(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
) -> tuple[list[ChatExample], list[str]]:
    """Return the examples that fit into the model's context, and the places of those that do not."""
    if not conversations:
        raise DataError("there is no conversation to evaluate. Give at least one")
    cut = [_until_answer(conversation) for conversation in conversations]
    limit = engine.context_limit or math.inf
    examples, too_long = [], []
    for number, (one, rendered) in enumerate(zip(cut, render_batch(tokenizer, cut, "last"), strict=True)):
        prompt = chat_prompt_ids(tokenizer, one.messages[:-1], one.tools)
        if max(len(prompt) + max_new_tokens, len(rendered.ids)) > limit:
            too_long.append(one.location or f"conversation {number + 1}")
        else:
            examples.append(ChatExample(one, _language(one), prompt, rendered))
    if not examples:
        raise DataError(
            f"none of {len(cut):,} conversations fits into the model's context of {limit:,} tokens with "
            f"{max_new_tokens:,} new ones. Give shorter ones, or a smaller --max-new-tokens"
        )
    return examples, too_long


def _until_answer(conversation: Conversation) -> Conversation:
    """Return the conversation up to its last answer, which is compared whatever its weight."""
    messages = conversation.messages
    last = max((index for index, one in enumerate(messages) if one.role == "assistant"), default=0)
    if last == 0:
        raise DataError(
            "this conversation has no answer after a question, so nothing can be compared with a reply. "
            "Leave it out or complete it",
            conversation.location or None,
        )
    answer = messages[last]
    given = ChatMessage(answer.role, answer.content.strip(), answer.tool_calls)
    return conversation.with_messages([*messages[:last], given])


def _language(conversation: Conversation) -> str:
    named = conversation.metadata.get("language")
    said = "\n".join(message.content for message in conversation.messages)
    return named if isinstance(named, str) and named else guess_language(said)


def score_references(
    engine: Engine, examples: Sequence[ChatExample], progress: ChatProgress
) -> list[TeacherForcedScores]:
    """Predict the given answers, in packed rows of whole conversations."""
    results: list[TeacherForcedScores] = []
    for group in _groups([len(example.rendered.ids) for example in examples]):
        progress("reading given answers", len(results), len(examples))
        rendered = [examples[index].rendered for index in group]
        counts = [int(one.loss_mask[1:].sum()) for one in rendered]
        losses, right = score_tokens(engine.model, _row(rendered))
        for own, correct in zip(losses.split(counts), right.split(counts), strict=True):
            results.append(TeacherForcedScores(float(own.cpu().double().sum()), len(own), int(correct.sum())))
    if not math.isfinite(sum(result.nats for result in results)):
        raise CheckpointError(
            "the model's predictions are not finite numbers: its weights are damaged or its training went "
            "astray. Use an earlier checkpoint"
        )
    return results


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in order, in groups of about _ROW_TOKENS."""
    group: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if group and used + length > _ROW_TOKENS:
            yield group
            group, used = [], 0
        group.append(index)
        used += length
    yield group


def _row(rendered: Sequence[TokenizedExample]) -> Batch:
    """Conversations in one row (1, T), each a document of its own, with their learnt tokens as labels."""
    lengths = [len(one.ids) for one in rendered]
    ids = np.concatenate([one.ids for one in rendered]).astype(np.int64)
    labels = np.where(np.concatenate([one.loss_mask for one in rendered]), ids, IGNORE_INDEX)
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORE_INDEX  # nothing of their own precedes them
    documents = np.repeat(np.arange(len(rendered)), lengths)
    arrays = {"input_ids": ids, "labels": labels, "document_ids": documents}
    return {name: torch.from_numpy(array)[None] for name, array in arrays.items()}


def generate_replies(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ChatExample],
    sampling: SamplingParams,
    progress: ChatProgress,
) -> list[ChatReply]:
    """Generate a reply to each example."""
    greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
    write = _greedily if greedy else _one_by_one
    replies: dict[int, ChatReply] = {}
    for index, ids, ended in write(engine, tokenizer, examples, sampling):
        replies[index] = _read(tokenizer, examples[index], ids, ended)
        progress("answering", len(replies), len(examples))
    return [replies[index] for index in range(len(examples))]


def _greedily(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ChatExample],
    sampling: SamplingParams,
) -> Iterator[tuple[int, list[int], bool]]:
    """Yield (index, ids, whether the turn was ended) of each example, in batches of prompts of like length."""
    ends, limit = stop_ids(tokenizer, engine.model), sampling.max_new_tokens
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
    while order:
        longest = len(examples[order[-1]].prompt) + limit
        count = max(1, min(len(order), _BATCH_REPLIES, _BATCH_TOKENS // longest))
        rows = [order.pop() for _ in range(count)]
        replies = engine.generate_greedy([examples[row].prompt for row in rows], limit, ends)
        for row, ids in zip(rows, replies, strict=True):
            yield row, ids, len(ids) < limit


def _one_by_one(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ChatExample],
    sampling: SamplingParams,
) -> Iterator[tuple[int, list[int], bool]]:
    """The same by sampling, each example as if it were the only one."""
    for index, example in enumerate(examples):
        session = engine.session()
        session.prefill(example.prompt)
        ids = list(session.generate(sampling, stop_ids(tokenizer, engine.model)))
        yield index, ids, session.ended


def _read(tokenizer: PreTrainedTokenizerBase, example: ChatExample, ids: list[int], ended: bool) -> ChatReply:
    """Parse a reply from its ids; one with a call that cannot be parsed is taken as text."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()
    try:
        prompt = str(tokenizer.decode(example.prompt, clean_up_tokenization_spaces=False))
        reply = assistant_format(tokenizer).parse(text, prompt)
        content, calls = reply.content, list(reply.calls)
        fault = format_error(content, calls, example.conversation, tokenizer.all_special_tokens)
    except ValueError:
        content, calls, fault = text, [], UNREADABLE_CALL
    return ChatReply(text, content, calls, len(ids), ended, fault)
