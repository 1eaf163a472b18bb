"""Loss, perplexity, bits per byte and token accuracy of a model on text.

The rule for texts. A document is read alone as [bos] ids [eos], with the bos where the tokenizer itself puts it before
a text, in windows of `context` tokens. Nothing is carried from one window to the next, and neighbours share one token,
so each token is predicted exactly once: the k-th of a window from the k − 1 before it. Loss, perplexity and accuracy
are over all predicted tokens. Bits per byte are the nats of the text's own tokens (the closing eos left out) divided by
ln 2 and by the UTF-8 bytes of the text, so models with different tokenizers can be compared.

Shapes: B rows, T tokens of a row, N predicted tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.data.row_sources import PackedSequences
from mm_rec.errors import ConfigError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX, token_losses
from mm_rec.models.forward import Batch, hidden_states, lm_head_of
from mm_rec.models.traits import traits_of
from mm_rec.tokenizers.loading import bos_ids, encode_documents, token_byte_lengths

BATCH_TOKENS = 8192
_ROW_TOKENS = 1024
_GROUP_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class TextScores:
    """Scores of a text.

    `tokens` are the predicted ones and `text_tokens` those without closing eos tokens; `bytes` the UTF-8 bytes of the
    latter; `loss` in nats a token; `token_accuracy` the share of tokens that were the likeliest.
    """

    documents: int
    tokens: int
    text_tokens: int
    bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float
    token_accuracy: float


class _Totals:
    """Sums over batches; nats in float64 on the CPU."""

    def __init__(self) -> None:
        self.documents = self.tokens = self.text_tokens = self.bytes = self.right = 0
        self.nats = self.text_nats = 0.0

    def add(self, losses: Tensor, right: Tensor, of_text: Tensor) -> None:
        """Count predicted tokens (N,): their nats, whether they were the likeliest, whether they are text."""
        losses, right, of_text = losses.cpu().double(), right.cpu(), of_text.cpu()
        self.tokens += len(losses)
        self.text_tokens += int(of_text.sum())
        self.right += int(right.sum())
        self.nats += float(losses.sum())
        self.text_nats += float(losses[of_text].sum())

    def scores(self) -> TextScores:
        """Return the scores; raises DataError where nothing was predicted."""
        if not self.text_tokens or not self.bytes:
            raise DataError(
                f"there is too little text to evaluate: {self.documents} documents with {self.text_tokens} tokens to "
                "predict. Give a text of a few sentences or more"
            )
        loss = self.nats / self.tokens
        return TextScores(
            documents=self.documents,
            tokens=self.tokens,
            text_tokens=self.text_tokens,
            bytes=self.bytes,
            loss=loss,
            perplexity=math.exp(loss) if loss < 700 else math.inf,
            bits_per_byte=self.text_nats / math.log(2) / self.bytes,
            token_accuracy=self.right / self.tokens,
        )


def evaluate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str],
    context: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
) -> TextScores:
    """Score documents by the rule above; memory holds about `batch_tokens` tokens, and 64 documents.

    Matrix products run in `dtype` where it is given (bfloat16), under autocast. Raises ConfigError for a context
    that cannot be used, DataError where there is too little text.
    """
    _require_context(model, context)
    totals = _Totals()
    row_tokens = context * -(-_ROW_TOKENS // context)
    rows = _rows(_windows(tokenizer, documents, context, totals), row_tokens)
    while group := list(itertools.islice(rows, max(1, batch_tokens // row_tokens))):
        batch, of_text = _batch(group)
        _score(model, batch, of_text, totals, dtype)
    return totals.scores()


def evaluate_corpus(
    model: PreTrainedModel,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seq_len: int,
    batch: int,
    max_rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> TextScores:
    """Score a corpus in packed rows of `seq_len` tokens, `batch` at a time, as training reads it.

    With `max_rows` that many rows are read, spread evenly over the corpus, the same on every call, and
    `documents` counts the parts met in them. A document that a row cuts goes on in the next row
    without what came before, so the figures are those of `evaluate_text` only where documents stand whole in
    rows. Matrix products run in `dtype` where it is given, under autocast.
    """
    _require_context(model, seq_len)
    sequences = PackedSequences(corpus, seq_len)
    count = len(sequences) if max_rows is None else min(len(sequences), max_rows)
    chosen = np.linspace(0, len(sequences) - 1, count).round().astype(np.int64)
    whole = count == len(sequences) and bool(bos_ids(tokenizer))
    lengths = None if whole else _byte_lengths(tokenizer)
    totals = _Totals()
    for first in range(0, count, batch):
        indices = chosen[first : first + batch]
        rows = sequences.batch(indices)
        of_text = rows["labels"] != IGNORE_INDEX
        if tokenizer.eos_token_id is not None:
            of_text &= ~torch.from_numpy(_is_last_token(corpus, indices, seq_len))
        if lengths is not None:
            totals.bytes += int(lengths[rows["labels"][of_text].numpy()].sum())
        totals.documents += int((rows["document_ids"].amax(1) + 1).sum())
        _score(model, rows, of_text, totals, dtype)
    if whole:
        totals.documents, totals.bytes = corpus.documents, corpus.text_bytes
    return totals.scores()


def _require_context(model: PreTrainedModel, context: int) -> None:
    if context < 2:
        raise ConfigError(
            f"the context is {context} tokens; it must be 2 or more, so that a token has one before it"
        )
    limit = traits_of(model.config).context_limit
    if limit is not None and context > limit:
        raise ConfigError(
            f"the context is {context:,} tokens and this model reads at most {limit:,}. Choose a smaller one"
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """Tokens of one document; `closes` where the last of them is its closing eos."""

    ids: NDArray[np.int32]
    closes: bool


def _windows(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], context: int, totals: _Totals
) -> Iterator[_Window]:
    """Cut documents into windows that share one token with the next; counts documents and predicted bytes."""
    iterator = iter(documents)
    lengths = None if bos_ids(tokenizer) else _byte_lengths(tokenizer)
    while group := list(itertools.islice(iterator, _GROUP_DOCUMENTS)):
        for text, ids in zip(group, encode_documents(tokenizer, group), strict=True):
            totals.documents += 1
            totals.bytes += len(text.encode())
            if lengths is not None and text:  # without bos nothing predicts the first token
                totals.bytes -= int(lengths[ids[:1]].sum())
            for start in range(0, len(ids) - 1, context - 1):
                stop = min(start + context, len(ids))
                yield _Window(ids[start:stop], tokenizer.eos_token_id is not None and stop == len(ids))


def _rows(windows: Iterable[_Window], row_tokens: int) -> Iterator[list[_Window]]:
    """Put windows into rows of at most `row_tokens`, in their order."""
    row: list[_Window] = []
    used = 0
    for window in windows:
        if used + len(window.ids) > row_tokens:
            yield row
            row, used = [], 0
        row.append(window)
        used += len(window.ids)
    if row:
        yield row


def _batch(rows: list[list[_Window]]) -> tuple[Batch, Tensor]:
    """Build the batch of packed rows, each window a document of its own, and a mask (B, T) of the text's labels."""
    shape = (len(rows), max(sum(len(window.ids) for window in row) for row in rows))
    ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE_INDEX, dtype=np.int64)
    documents, of_text = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, windows in enumerate(rows):
        start = 0
        for number, window in enumerate(windows):
            stop = start + len(window.ids)
            ids[row, start:stop], documents[row, start:stop] = window.ids, number
            labels[row, start + 1 : stop] = window.ids[1:]
            of_text[row, start + 1 : stop - window.closes] = True
            start = stop
    batch = {
        name: torch.from_numpy(array)
        for name, array in (("input_ids", ids), ("labels", labels), ("document_ids", documents))
    }
    if (documents < 0).any():
        batch["attention_mask"] = (batch["document_ids"] >= 0).long()
    return batch, torch.from_numpy(of_text)


def _score(
    model: PreTrainedModel, batch: Batch, of_text: Tensor, totals: _Totals, dtype: torch.dtype | None
) -> None:
    """Run a model on one batch and count its predictions."""
    predicted = batch["labels"][:, 1:] != IGNORE_INDEX
    losses, right = score_tokens(model, batch, dtype)
    totals.add(losses, right, of_text[:, 1:][predicted])


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel, batch: Batch, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return loss (nats) and correctness of each labelled token (N,); the model is in evaluation mode meanwhile."""
    device = model.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    plain = dtype is None or dtype == torch.float32
    precision = contextlib.nullcontext() if plain else torch.autocast(device.type, dtype)
    training = model.training
    model.eval()
    try:
        with precision:
            hidden = hidden_states(model, batch)
        losses, right = token_losses(hidden, lm_head_of(model), batch["labels"], dtype)
    finally:
        model.train(training)
    return losses, right


def _is_last_token(corpus: Corpus, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.bool_]:
    """Mark the tokens (B, T) of packed rows that are the last of their document."""
    closing = np.zeros((len(indices), seq_len), dtype=bool)
    for row, index in enumerate(indices):
        first = int(index) * (seq_len - 1)
        stop = min(first + seq_len, corpus.tokens)
        # A document closes where the next one starts, which may be just behind the row.
        closing[row, corpus.document_starts(first + 1, min(stop + 1, corpus.tokens)) - 1 - first] = True
        if stop == corpus.tokens:
            closing[row, stop - 1 - first] = True
    return closing


def _byte_lengths(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the UTF-8 bytes of text that each id stands for; a special token in a text counts as written."""
    lengths = token_byte_lengths(tokenizer)
    for index, token in tokenizer.added_tokens_decoder.items():
        lengths[index] = len(token.content.encode())
    return lengths
