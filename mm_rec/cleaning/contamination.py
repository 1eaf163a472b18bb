"""Find evaluation items in training text by n-grams of words.

An item counts as found where an n-gram of `n` words of it occurs in a document (13 words: Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C); an item of fewer words must stand there whole. Words are compared as
`text.normalise.dedup_key` gives them, so that case (of the language), punctuation and Unicode forms do not hide one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mm_rec.errors import DataError
from mm_rec.strict_parsing import DuplicateKey, parse_json
from mm_rec.text.ngrams import hash_ngrams, hash_words
from mm_rec.text.normalise import dedup_key

N_GRAM_WORDS = 13
MIN_WORDS = 6  # words; a shorter item ("Evet, doğru.") stands in any text


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """A text of an evaluation set, with its file and line."""

    text: str
    location: str


@dataclass(frozen=True, slots=True)
class _NGrams:
    """The n-grams of one length: sorted hashes `known` (U,) uint64, and of each n-gram its place there and its item."""

    known: NDArray[np.uint64]
    places: NDArray[np.int64]
    owners: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvaluationIndex:
    """An index of the n-grams of evaluation items, by length."""

    language: str
    n: int  # words of an n-gram
    items: list[EvaluationItem]
    skipped: int  # items of too few words to look for
    n_grams_by_length: dict[int, _NGrams]

    @classmethod
    def build(cls, items: Iterable[EvaluationItem], language: str, n: int = N_GRAM_WORDS) -> Self:
        """Index all items of at least MIN_WORDS words."""
        numbers: dict[int, list[NDArray[np.uint64]]] = {}
        owners: dict[int, list[int]] = {}
        kept: list[EvaluationItem] = []
        skipped = 0
        for item in items:
            words = hash_words(dedup_key(item.text, language).split())
            if len(words) < MIN_WORDS:
                skipped += 1
                continue
            length = min(n, len(words))
            numbers.setdefault(length, []).append(hash_ngrams(words, length))
            owners.setdefault(length, []).append(len(kept))
            kept.append(item)
        grams = {length: _index(numbers[length], owners[length]) for length in sorted(numbers)}
        return cls(language, n, kept, skipped, grams)

    def find(self, text: str) -> list[EvaluationItem]:
        """Return the items that share an n-gram with the text, in the order of the evaluation files."""
        found: set[int] = set()
        for length, hits in self._hits(text):
            grams = self.n_grams_by_length[length]
            if len(hits):
                found.update(grams.owners[np.isin(grams.places, hits)].tolist())
        return [self.items[number] for number in sorted(found)]

    def found_shares(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """Return the share of each item that occurs in the texts, counted in its n-grams: (items,)."""
        seen = {
            length: np.zeros(len(grams.known), dtype=np.bool_)
            for length, grams in self.n_grams_by_length.items()
        }
        for text in texts:
            for length, hits in self._hits(text):
                seen[length][hits] = True
        found, total = np.zeros(len(self.items)), np.zeros(len(self.items))
        for length, grams in self.n_grams_by_length.items():
            found += np.bincount(grams.owners, weights=seen[length][grams.places], minlength=len(self.items))
            total += np.bincount(grams.owners, minlength=len(self.items))
        return found / np.maximum(total, 1)

    def _hits(self, text: str) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield, for each length, the places of known n-grams that occur in the text."""
        words = hash_words(dedup_key(text, self.language).split())
        for length, grams in self.n_grams_by_length.items():
            own = hash_ngrams(words, length)
            places = np.minimum(np.searchsorted(grams.known, own), len(grams.known) - 1)
            yield length, places[grams.known[places] == own]


def _index(numbers: list[NDArray[np.uint64]], owners: list[int]) -> _NGrams:
    known, places = np.unique(np.concatenate(numbers), return_inverse=True)
    return _NGrams(known, places, np.repeat(owners, list(map(len, numbers))))


def evaluation_items(paths: Iterable[Path | str]) -> Iterator[EvaluationItem]:
    """Read all strings of evaluation files: .jsonl and .json (at any depth), .csv and .tsv (cells), .txt (lines).

    Raises DataError where a file cannot be read.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise DataError("there is no such evaluation file or folder. Check the name", path)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in _READERS:
                yield from _read(file)
            elif not path.is_dir():
                raise DataError(
                    f"evaluation text comes from {', '.join(_READERS)} files; convert it to one", file
                )


def _read(file: Path) -> Iterator[EvaluationItem]:
    line = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            for line, value in _READERS[file.suffix](handle):
                yield from (EvaluationItem(text, f"{file}:{line}") for text in _strings(value))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"this evaluation file cannot be read: {error}", file, line + 1) from error


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in nested lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _json_lines(handle: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(handle, 1):
        if not line.isspace():
            yield number, parse_json(line)


_READERS: dict[str, Any] = {
    ".jsonl": _json_lines,
    ".json": lambda handle: _json_document(handle.read()),
    ".csv": lambda handle: enumerate(csv.reader(handle), 1),
    ".tsv": lambda handle: enumerate(csv.reader(handle, delimiter="\t"), 1),
    ".txt": lambda handle: enumerate(handle, 1),
}


def _json_document(text: str) -> Iterator[tuple[int, Any]]:
    """One JSON value, or, as some sets have it in .json too, one a line."""
    try:
        yield 1, parse_json(text)
    except DuplicateKey:
        raise
    except ValueError:
        yield from _json_lines(text.splitlines())
