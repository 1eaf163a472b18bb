"""Runs of words (n-grams) as numbers, so that texts can be compared by arrays."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing
_HALF = np.uint64(32)


def hash_words(words: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each word, the same everywhere and always: (words,) uint64, of which CRC-32 fills 32 bits.

    Two of a million different words share a number now and then; n-grams of several words hardly ever do.
    """
    return np.fromiter(map(zlib.crc32, map(str.encode, words)), dtype=np.uint64, count=len(words))


def hash_ngrams(numbers: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A number for each run of n words, equal where the runs are: (words − n + 1,) uint64, of 64 mixed bits."""
    count = max(0, len(numbers) - n + 1)
    return combine_hashes(numbers[shift : shift + count] for shift in range(n))


def combine_hashes(columns: Iterable[NDArray[np.unsignedinteger]]) -> NDArray[np.uint64]:
    """One number for each row of some columns (rows,), equal where the rows are: (rows,) uint64, of 64 mixed bits."""
    keys = np.zeros((), dtype=np.uint64)
    for column in columns:
        keys = mix_hash(keys, column)
    return keys


def mix_hash(keys: NDArray[np.uint64], column: NDArray[np.unsignedinteger]) -> NDArray[np.uint64]:
    """Keys of runs with one more number each: (rows,) uint64."""
    keys = (column + keys) * _MULTIPLIER
    return keys ^ (keys >> _HALF)


def ngrams_within_rows(numbers: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Which of `hash_ngrams(numbers, n)` lie inside one row, where rows of these lengths were joined: bool."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    inside = np.arange(len(numbers)) - starts < np.repeat(np.maximum(lengths - n + 1, 0), lengths)
    return inside[: max(0, len(numbers) - n + 1)]
