"""Validation of fine-tuning: loss and accuracy over the tokens of the loss mask, and sample answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.rendering import TokenizedExample, chat_prompt_ids
from mm_rec.data.packing import PackedConversations
from mm_rec.data.row_sources import make_batch
from mm_rec.evaluation.perplexity import score_tokens
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import stop_ids


@dataclass(frozen=True, slots=True)
class AssistantTokenScores:
    """`tokens` of the loss mask; `loss` in nats a token; `token_accuracy` the share of them that were likeliest."""

    tokens: int
    loss: float
    token_accuracy: float


def score_assistant_tokens(
    model: PreTrainedModel,
    packed: PackedConversations,
    pad_id: int,
    batch: int,
    dtype: torch.dtype | None = None,
    rows: int | None = None,
) -> AssistantTokenScores:
    """Score the labelled tokens of packed conversations (one row a column), `batch` rows at a time.

    With `rows`, that many of them, spread evenly over all and the same on every call.
    """
    nats, right, tokens = 0.0, 0, 0
    count = len(packed) if rows is None else min(rows, len(packed))
    chosen = np.linspace(0, len(packed) - 1, count).round().astype(np.int64)
    for first in range(0, count, batch):
        read = make_batch(packed.rows(chosen[first : first + batch]), pad_id)
        losses, correct = score_tokens(model, read, dtype)
        nats += float(losses.cpu().double().sum())
        right += int(correct.sum())
        tokens += len(losses)
    return AssistantTokenScores(tokens, nats / max(1, tokens), right / max(1, tokens))


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """A prompt for a sample answer: the text that a person sees, the prompt's ids, the reference answer."""

    asked: str
    ids: list[int]
    expected: str


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """A sample answer beside its reference."""

    asked: str
    given: str
    expected: str


def prompt_of_last_answer(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> SamplePrompt:
    """Return the messages before a conversation's last answer as a prompt."""
    messages = conversation.messages
    last = max(number for number, message in enumerate(messages) if message.role == "assistant")
    ids = chat_prompt_ids(tokenizer, messages[:last], conversation.tools)
    return SamplePrompt(messages[last - 1].content, ids, messages[last].content)


def prompt_of_example(tokenizer: PreTrainedTokenizerBase, rendered: TokenizedExample) -> SamplePrompt:
    """Return the tokens of an example before its loss mask begins; its first half where the mask covers all."""
    cut = prompt_length(rendered) or len(rendered.ids) // 2
    asked, expected = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in np.split(rendered.ids, [cut])
    )
    return SamplePrompt(str(asked), rendered.ids[:cut].tolist(), str(expected))


def prompt_length(rendered: TokenizedExample) -> int:
    """Return the tokens before the loss mask begins; 0 where there is at most a BOS."""
    first = int(np.flatnonzero(rendered.loss_mask)[0])
    return first if first > 1 else 0


def answer_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[SamplePrompt],
    max_new_tokens: int = 64,
) -> list[SampleAnswer]:
    """Answer the prompts that fit the context by greedy decoding; the model is in evaluation mode meanwhile."""
    training = model.training
    engine = Engine(model)  # sets the model to evaluation
    limit = engine.context_limit
    asked = [one for one in questions if limit is None or len(one.ids) + max_new_tokens <= limit]
    if not asked:
        return []
    try:
        replies = engine.generate_greedy(
            [one.ids for one in asked], max_new_tokens, stop_ids(tokenizer, engine.model)
        )
    finally:
        model.train(training)
    texts = [str(tokenizer.decode(reply, clean_up_tokenization_spaces=False)).strip() for reply in replies]
    return [SampleAnswer(one.asked, text, one.expected) for one, text in zip(asked, texts, strict=True)]
