"""Log-likelihoods of given continuations of given contexts, in packed batches.

Each context with its continuation is read alone: rows of the batch hold several of them, as documents that do not see
each other. The last token of each is predicted and never read, so it takes no place in a row.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import DataError
from mm_rec.inference.generate import encode_prompt, encode_rendered, encode_text
from mm_rec.models.cross_entropy import IGNORE_INDEX, token_losses
from mm_rec.models.forward import Batch, hidden_states, lm_head_of
from mm_rec.models.traits import traits_of

BATCH_TOKENS = 4096
_ROW_TOKENS = 256  # longer rows make attention dearer, shorter ones leave more of them unfilled

LoglikelihoodRequest = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Loglikelihood:
    """The log-likelihood of a continuation.

    `logprob` in nats is the sum over its `tokens`; `is_greedy` where each of them was the likeliest.
    """

    logprob: float
    tokens: int
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class _EncodedRequest:
    """The ids of a context and its continuation, of which the last `predicted` ones are scored."""

    ids: Sequence[int]
    predicted: int

    @property
    def width(self) -> int:
        """The tokens that are read."""
        return len(self.ids) - 1


def prefix_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what precedes a text without context, so that its first token is predicted: bos, or else eos, or nothing.

    As in lm-eval, this is so even where the tokenizer does not put its bos before a text itself.
    """
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if first is None else [first]


def encode_request(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, is_chat: bool = False
) -> LoglikelihoodRequest:
    """Return the ids of a context, begun as a prompt is, and of its continuation; no context is `prefix_token_ids`.

    The two are encoded as one text and cut behind as many tokens as the context alone has. A rendered
    chat (`is_chat`) begins as its template says.
    """
    if not context:
        return prefix_token_ids(tokenizer), encode_text(tokenizer, continuation)
    ids_of = encode_rendered if is_chat else encode_prompt
    whole, head = (ids_of(tokenizer, text) for text in (context + continuation, context))
    return whole[: len(head)], whole[len(head) :]


def loglikelihoods(
    model: PreTrainedModel,
    requests: Iterable[LoglikelihoodRequest],
    *,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Loglikelihood]:
    """Yield the likelihood of the continuation of each request (context ids, continuation ids), in their order.

    At most `max_length` tokens (default: the model's own limit) are read of one request: the last ones, as in lm-eval.
    Where there is no context the first token is not predicted. Memory holds about `batch_tokens` tokens, or one
    request. Raises DataError for a continuation that is longer than `max_length`, or has nothing to predict.
    """
    limit = max_length or traits_of(model.config).context_limit
    texts = (_truncate(number, request, limit) for number, request in enumerate(requests, start=1))
    for group in _groups(texts, batch_tokens):
        yield from _score(model, group)


def _truncate(number: int, request: LoglikelihoodRequest, limit: int | None) -> _EncodedRequest:
    """Truncate a request to its last `limit` tokens, and check that something is left to predict."""
    context, continuation = request
    if limit is not None and len(continuation) > limit:
        raise DataError(
            f"continuation {number} has {len(continuation):,} tokens and this model reads at most {limit:,}. Shorten it"
        )
    ids = [*context, *continuation]
    if limit is not None:
        ids = ids[-(limit + 1) :]
    predicted = min(len(continuation), len(ids) - 1)
    if predicted < 1:
        raise DataError(
            f"continuation {number} has nothing to predict: {len(continuation)} tokens, {len(context)} of context. "
            "Give a longer one, or a context before a single token"
        )
    return _EncodedRequest(ids, predicted)


def _groups(texts: Iterable[_EncodedRequest], batch_tokens: int) -> Iterator[list[_EncodedRequest]]:
    """Yield runs of texts of about `batch_tokens` together."""
    group: list[_EncodedRequest] = []
    used = 0
    for text in texts:
        if group and used + text.width > batch_tokens:
            yield group
            group, used = [], 0
        group.append(text)
        used += text.width
    if group:
        yield group


def _rows(texts: Sequence[_EncodedRequest]) -> list[list[int]]:
    """Distribute texts over rows of nearly one length: the longest first, each into the row that is shortest."""
    longest, total = max(text.width for text in texts), sum(text.width for text in texts)
    count = max(1, total // max(longest, _ROW_TOKENS))
    rows: list[list[int]] = [[] for _ in range(count)]
    lengths = [(0, row) for row in range(count)]
    for index in sorted(range(len(texts)), key=lambda index: -texts[index].width):
        length, row = lengths[0]
        rows[row].append(index)
        heapq.heapreplace(lengths, (length + texts[index].width, row))
    return rows


def _batch(rows: list[list[_EncodedRequest]]) -> Batch:
    """Build the batch of packed rows; labels (B, T + 1) have a column more, for what the last token read predicts."""
    shape = (len(rows), max(sum(text.width for text in row) for row in rows))
    ids, documents = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    labels = np.full((shape[0], shape[1] + 1), IGNORE_INDEX, dtype=np.int64)
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts):
            stop = start + text.width
            ids[row, start:stop], documents[row, start:stop] = text.ids[:-1], number
            # The last label stands in the first column of the next text, which itself is never predicted.
            labels[row, stop + 1 - text.predicted : stop + 1] = text.ids[-text.predicted :]
            start = stop
    arrays = {"input_ids": ids, "document_ids": documents, "labels": labels}
    if (documents < 0).any():
        arrays["attention_mask"] = (documents >= 0).astype(np.int64)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.no_grad()
def _score(model: PreTrainedModel, texts: Sequence[_EncodedRequest]) -> list[Loglikelihood]:
    """Score texts in one batch; the model is in evaluation mode meanwhile."""
    rows = _rows(texts)
    batch = _batch([[texts[index] for index in row] for row in rows])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    training = model.training
    model.eval()
    try:
        hidden = pad(hidden_states(model, batch), (0, 0, 0, 1))  # for the extra column; it predicts nothing
        losses, right = token_losses(hidden, lm_head_of(model), labels)
    finally:
        model.train(training)
    order = [index for row in rows for index in row]
    starts = np.cumsum([0, *(texts[index].predicted for index in order[:-1])])
    nats = np.add.reduceat(losses.cpu().double().numpy(), starts)
    greedy = np.logical_and.reduceat(right.cpu().numpy(), starts)
    found = {
        index: Loglikelihood(-float(nats[place]), texts[index].predicted, bool(greedy[place]))
        for place, index in enumerate(order)
    }
    return [found[index] for index in range(len(texts))]
