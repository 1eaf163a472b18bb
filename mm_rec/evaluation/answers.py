"""How well a model predicts answers: loss and accuracy over learnt tokens alone, and what it answers itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.packing import PADDING, PackedConversations
from mm_rec.data.conversations.rendering import prompt_ids
from mm_rec.evaluation.perplexity import predict
from mm_rec.inference.engine import Engine
from mm_rec.inference.text_stream import stop_ids
from mm_rec.models.cross_entropy import IGNORED


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """`tokens` learnt; `loss` in nats a token; `token_accuracy` the share of tokens that were the likeliest."""

    tokens: int
    loss: float
    token_accuracy: float


def score_answers(
    model: PreTrainedModel,
    packed: PackedConversations,
    pad_id: int,
    batch: int,
    dtype: torch.dtype | None = None,
    rows: int | None = None,
) -> AnswerScores:
    """Score packed conversations (one row a column), `batch` rows at a time; the first `rows` of them where given."""
    nats, right, tokens = 0.0, 0, 0
    count = len(packed) if rows is None else min(rows, len(packed))
    for first in range(0, count, batch):
        shape = (min(batch, count - first), packed.seq_len)
        ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.full(shape, PADDING, np.int64)
        for row in range(shape[0]):
            packed.fill(first + row, 0, ids[row], labels[row], documents[row])
        arrays = {"input_ids": ids, "labels": labels, "document_ids": documents}
        losses, correct = predict(model, {name: torch.from_numpy(x) for name, x in arrays.items()}, dtype)
        nats += float(losses.double().sum())
        right += int(correct.sum())
        tokens += len(losses)
    return AnswerScores(tokens, nats / max(1, tokens), right / max(1, tokens))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to the messages before a conversation's last answer, and that answer."""

    asked: str
    given: str
    expected: str


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_new_tokens: int = 64,
) -> list[Answer]:
    """Answer each conversation's last question with the likeliest tokens; the model is in evaluation mode meanwhile."""
    training = model.training
    engine = Engine(model, model.device)  # sets the model to evaluation
    try:
        return _answers(engine, tokenizer, conversations, max_new_tokens)
    finally:
        model.train(training)


def _answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
) -> list[Answer]:
    limit = engine.context_limit
    asked = []
    for conversation in conversations:
        last = max(n for n, message in enumerate(conversation.messages) if message.role == "assistant")
        ids = prompt_ids(tokenizer, conversation.messages[:last], conversation.tools)
        if limit is None or len(ids) + max_new_tokens <= limit:
            asked.append((conversation.messages[last - 1].content, ids, conversation.messages[last].content))
    if not asked:
        return []
    replies = engine.continue_greedily([ids for _, ids, _ in asked], max_new_tokens, stop_ids(tokenizer))
    texts = [str(tokenizer.decode(reply, clean_up_tokenization_spaces=False)).strip() for reply in replies]
    return [Answer(question, text, right) for (question, _, right), text in zip(asked, texts, strict=True)]
