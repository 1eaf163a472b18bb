"""Hashes of word n-grams, so that texts can be compared by arrays."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing
_HALF = np.uint64(32)


def hash_words(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return a hash of each word, the same on every machine: (words,) uint64, of which CRC-32 fills 32 bits.

    Two of a million different words collide now and then; n-grams of several words hardly ever do.
    """
    return np.fromiter(map(zlib.crc32, map(str.encode, words)), dtype=np.uint64, count=len(words))


def hash_ngrams(numbers: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return a hash of each n-gram: (words − n + 1,) uint64, of 64 mixed bits."""
    count = max(0, len(numbers) - n + 1)
    return combine_hashes(numbers[shift : shift + count] for shift in range(n))


def combine_hashes(columns: Iterable[NDArray[np.unsignedinteger]]) -> NDArray[np.uint64]:
    """Return one hash for each row of some columns (rows,): (rows,) uint64, of 64 mixed bits."""
    keys = np.zeros((), dtype=np.uint64)
    for column in columns:
        keys = mix_hash(keys, column)
    return keys


def mix_hash(keys: NDArray[np.uint64], column: NDArray[np.unsignedinteger]) -> NDArray[np.uint64]:
    """Mix one more number into each hash: (rows,) uint64."""
    keys = (column + keys) * _MULTIPLIER
    return keys ^ (keys >> _HALF)


def ngrams_within_rows(numbers: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Mark which of `hash_ngrams(numbers, n)` lie inside one row, where rows of these lengths were joined: bool."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    inside = np.arange(len(numbers)) - starts < np.repeat(np.maximum(lengths - n + 1, 0), lengths)
    return inside[: max(0, len(numbers) - n + 1)]
