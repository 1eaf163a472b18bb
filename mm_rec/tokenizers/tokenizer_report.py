"""Tokenizer metrics on a text: fertility, bytes a token, byte fallback, and the longest and rarest pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import TokenizerError
from mm_rec.tokenizers.loading import (
    bos_ids,
    byte_fallback_ids,
    encode_documents,
    fingerprint,
    token_byte_lengths,
    vocabulary_size,
)

_BATCH_DOCUMENTS = 256
_SHOWN_PIECES = 10


def measure_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts_by_language: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """Measure a tokenizer on the texts of each language; the result is plain values, ready for JSON.

    A language has `documents`, `words` (split at white space), `bytes` (UTF-8), `tokens` (without bos and
    eos), `fertility` (tokens a word), `bytes_per_token`, `byte_fallback_share` of the tokens, `used_pieces`,
    its `longest_pieces` (most bytes) and `rarest_pieces` (least used, but used) as {id, piece, bytes, count}.
    Over all of them, `unused_pieces` counts ordinary pieces that no text used. Raises TokenizerError where a
    language has no text.
    """
    lengths = token_byte_lengths(tokenizer)
    total = np.zeros(len(lengths), dtype=np.int64)
    languages: dict[str, Any] = {}
    for language, texts in texts_by_language.items():
        languages[language], counts = _measure(tokenizer, texts, lengths)
        if languages[language]["tokens"] == 0:
            raise TokenizerError(f"{language}: there is no text to measure. Give a file that holds text")
        total += counts
    ordinary = lengths > 0
    ordinary[byte_fallback_ids(tokenizer)] = False
    return {
        "fingerprint": fingerprint(tokenizer),
        "vocab_size": vocabulary_size(tokenizer),
        "ordinary_pieces": int(ordinary.sum()),
        "unused_pieces": int((ordinary & (total == 0)).sum()),
        "languages": languages,
    }


def _measure(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], lengths: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Return the metrics of one language, and how often each id occurs, (vocabulary,)."""
    counts = np.zeros(len(lengths), dtype=np.int64)
    documents = words = size = 0
    frame = bos_ids(tokenizer) + ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    for batch in _batches(texts):
        for text, ids in zip(batch, encode_documents(tokenizer, batch), strict=True):
            counts += np.bincount(ids, minlength=len(counts))
            words += len(text.split())
            size += len(text.encode())
        documents += len(batch)
    for token in frame:
        counts[token] -= documents
    tokens = int(counts.sum())
    fallback_ids = byte_fallback_ids(tokenizer)
    ordinary = lengths > 0
    ordinary[fallback_ids] = False
    used = np.flatnonzero(ordinary & (counts > 0))
    figures = {
        "documents": documents,
        "words": words,
        "bytes": size,
        "tokens": tokens,
        "fertility": tokens / max(words, 1),
        "bytes_per_token": size / max(tokens, 1),
        "byte_fallback_share": int(counts[fallback_ids].sum()) / max(tokens, 1),
        "used_pieces": len(used),
        "longest_pieces": _pieces(tokenizer, used[np.lexsort((used, -lengths[used]))], lengths, counts),
        "rarest_pieces": _pieces(tokenizer, used[np.lexsort((used, counts[used]))], lengths, counts),
    }
    return figures, counts


def _pieces(
    tokenizer: PreTrainedTokenizerBase,
    ids: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Return the first few ids with their text, bytes and number of uses."""
    return [
        {
            "id": index,
            "piece": tokenizer.convert_ids_to_tokens(index),
            "bytes": int(lengths[index]),
            "count": int(counts[index]),
        }
        for index in ids[:_SHOWN_PIECES].tolist()
    ]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, _BATCH_DOCUMENTS)):
        yield batch
