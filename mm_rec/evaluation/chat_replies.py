"""A model at work on conversations: it reads their last answers, and writes its own.

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
from mm_rec.data.conversations.rendering import Rendered, prompt_ids, render_many
from mm_rec.errors import CheckpointError, DataError
from mm_rec.evaluation.chat_format import UNREADABLE_CALL, format_fault
from mm_rec.evaluation.perplexity import predict
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.inference.text_stream import stop_ids
from mm_rec.models.cross_entropy import IGNORED
from mm_rec.models.forward import Batch
from mm_rec.text.words import guess_language
from mm_rec.tokenizers.answer_form import answer_form

_ROW_TOKENS = 4096
_BATCH_REPLIES = 32
_BATCH_TOKENS = 32_768

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation that ends with the given answer, what precedes it as ids, and the whole as ids with the mask."""

    conversation: Conversation
    language: str
    prompt: list[int]
    rendered: Rendered

    @property
    def reference(self) -> ChatMessage:
        """The given answer."""
        return self.conversation.messages[-1]


@dataclass(frozen=True, slots=True)
class Forced:
    """How the given answer was predicted: nats, predicted tokens, and those that were the likeliest."""

    nats: float
    tokens: int
    right: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model wrote: its tokens' text, the message and the calls in it, and what is wrong with its form."""

    text: str
    content: str
    calls: list[dict[str, Any]]
    tokens: int
    ended: bool
    fault: str | None


def make_tasks(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
) -> tuple[list[Task], list[str]]:
    """The tasks that fit into the model's context, and the places of those that do not."""
    if not conversations:
        raise DataError("there is no conversation to evaluate. Give at least one")
    cut = [_until_answer(conversation) for conversation in conversations]
    limit = engine.context_limit or math.inf
    tasks, too_long = [], []
    for number, (one, rendered) in enumerate(zip(cut, render_many(tokenizer, cut, "last"), strict=True)):
        prompt = prompt_ids(tokenizer, one.messages[:-1], one.tools)
        if max(len(prompt) + max_new_tokens, len(rendered.ids)) > limit:
            too_long.append(one.place or f"conversation {number + 1}")
        else:
            tasks.append(Task(one, _language(one), prompt, rendered))
    if not tasks:
        raise DataError(
            f"none of {len(cut):,} conversations fits into the model's context of {limit:,} tokens with "
            f"{max_new_tokens:,} new ones. Give shorter ones, or a smaller --max-new-tokens"
        )
    return tasks, too_long


def _until_answer(conversation: Conversation) -> Conversation:
    """The conversation up to its last answer, which is the one to compare with whatever its weight."""
    messages = conversation.messages
    last = max((index for index, one in enumerate(messages) if one.role == "assistant"), default=0)
    if last == 0:
        raise DataError(
            "this conversation has no answer after a question, so nothing can be compared with a reply. "
            "Leave it out or complete it",
            conversation.place or None,
        )
    answer = messages[last]
    given = ChatMessage(answer.role, answer.content.strip(), answer.tool_calls)
    return conversation.with_messages([*messages[:last], given])


def _language(conversation: Conversation) -> str:
    named = conversation.metadata.get("language")
    said = "\n".join(message.content for message in conversation.messages)
    return named if isinstance(named, str) and named else guess_language(said)


def read_answers(engine: Engine, tasks: Sequence[Task], progress: Progress) -> list[Forced]:
    """Predict the given answers, in packed rows of whole conversations."""
    results: list[Forced] = []
    for group in _groups([len(task.rendered.ids) for task in tasks]):
        progress("reading given answers", len(results), len(tasks))
        rendered = [tasks[index].rendered for index in group]
        counts = [int(one.learnt[1:].sum()) for one in rendered]
        losses, right = predict(engine.model, _row(rendered))
        for own, correct in zip(losses.split(counts), right.split(counts), strict=True):
            results.append(Forced(float(own.double().sum()), len(own), int(correct.sum())))
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


def _row(rendered: Sequence[Rendered]) -> Batch:
    """Conversations in one row (1, T), each a document of its own, with their learnt tokens as labels."""
    lengths = [len(one.ids) for one in rendered]
    ids = np.concatenate([one.ids for one in rendered]).astype(np.int64)
    labels = np.where(np.concatenate([one.learnt for one in rendered]), ids, IGNORED)
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORED  # nothing of their own precedes them
    documents = np.repeat(np.arange(len(rendered)), lengths)
    arrays = {"input_ids": ids, "labels": labels, "document_ids": documents}
    return {name: torch.from_numpy(array)[None] for name, array in arrays.items()}


def write_replies(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    progress: Progress,
) -> list[Reply]:
    """What the model answers to each task."""
    greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
    write = _greedily if greedy else _one_by_one
    replies: dict[int, Reply] = {}
    for index, ids, ended in write(engine, tokenizer, tasks, sampling):
        replies[index] = _read(tokenizer, tasks[index], ids, ended)
        progress("answering", len(replies), len(tasks))
    return [replies[index] for index in range(len(tasks))]


def _greedily(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling
) -> Iterator[tuple[int, list[int], bool]]:
    """(index, ids, whether the turn was ended) of each task, many together; prompts of like length: less padding."""
    ends, limit = stop_ids(tokenizer, engine.model), sampling.max_new_tokens
    order = sorted(range(len(tasks)), key=lambda index: len(tasks[index].prompt))
    while order:
        longest = len(tasks[order[-1]].prompt) + limit
        count = max(1, min(len(order), _BATCH_REPLIES, _BATCH_TOKENS // longest))
        rows = [order.pop() for _ in range(count)]
        replies = engine.continue_greedily([tasks[row].prompt for row in rows], limit, ends)
        for row, ids in zip(rows, replies, strict=True):
            yield row, ids, len(ids) < limit


def _one_by_one(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling
) -> Iterator[tuple[int, list[int], bool]]:
    """The same by sampling, each task as if it were the only one."""
    for index, task in enumerate(tasks):
        session = engine.session()
        session.feed(task.prompt)
        ids = list(session.generate(sampling, stop_ids(tokenizer, engine.model)))
        yield index, ids, session.ended


def _read(tokenizer: PreTrainedTokenizerBase, task: Task, ids: list[int], ended: bool) -> Reply:
    """A reply from its ids; one with a call that cannot be read is taken as text."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()
    try:
        prompt = str(tokenizer.decode(task.prompt, clean_up_tokenization_spaces=False))
        reply = answer_form(tokenizer).read(text, prompt)
        content, calls = reply.content, list(reply.calls)
        fault = format_fault(content, calls, task.conversation, tokenizer.all_special_tokens)
    except ValueError:
        content, calls, fault = text, [], UNREADABLE_CALL
    return Reply(text, content, calls, len(ids), ended, fault)
