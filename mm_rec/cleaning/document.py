"""A document in the cleaning steps: its text, the cuts so far, and its words and lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from mm_rec.text.languages import LanguageRules
from mm_rec.text.ngrams import hash_ngrams, mix_hash

# Letters and digits; apostrophes, hyphens and separators of numbers join (İzmir'de, e-posta, 1.250,50).
_WORD = re.compile(r"\w+(?:['’.,\-]\w+)*")
_AROUND_WORDS = ".,;:!?\"'()"


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of text that a step took out of a document, and why."""

    reason: str
    text: str


# Why a document is left out, as reports name it; a reason is a constant beside the step that gives it.
Reason = NewType("Reason", str)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document is left out: the reason, what was measured beside its limit, and the language that it was found in."""

    reason: Reason
    measured: str = ""
    language: str | None = None  # where it is why the document is left out

    def record(self) -> dict[str, str]:
        """The reason and what was measured, as plain values."""
        return {"reason": self.reason, "detail": self.measured}


@dataclass(frozen=True)
class CleaningDocument:
    """A text in a language; words and lines are split once, however many rules read them."""

    text: str
    language: LanguageRules
    cuts: tuple[Cut, ...] = ()

    def with_text(self, text: str, cuts: Iterable[Cut] = ()) -> CleaningDocument:
        """Return the document with another text, and further cuts."""
        cuts = tuple(cuts)
        if text == self.text and not cuts:
            return self
        return CleaningDocument(text, self.language, self.cuts + cuts)

    @cached_property
    def encoded(self) -> bytes:
        """The text in UTF-8, whose bytes are counted faster than characters."""
        return self.text.encode(errors="surrogatepass")

    @cached_property
    def lines(self) -> list[str]:
        """Lines that hold more than white space, without the white space around them."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Runs of lines between blank lines."""
        return [stripped for part in self.text.split("\n\n") if (stripped := part.strip())]

    @cached_property
    def words(self) -> list[str]:
        """Words and numbers in their order, without punctuation."""
        # Most pieces between white space are a word with punctuation around it at most: faster than the pattern alone.
        found: list[str] = []
        for piece in self.text.split():
            if piece.isalnum():
                found.append(piece)
            elif (inner := piece.strip(_AROUND_WORDS)).isalnum():
                found.append(inner)
            else:
                found += _WORD.findall(piece)
        return found

    @cached_property
    def word_lengths(self) -> NDArray[np.int64]:
        """Characters of each word: (words,) int64."""
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def _word_numbers(self) -> NDArray[np.uint64]:
        """A number for each word, equal for equal words: Python's own hash, which stays in this process."""
        return np.fromiter(map(hash, self.words), dtype=np.int64, count=len(self.words)).view(np.uint64)

    @cached_property
    def _n_grams(self) -> list[NDArray[np.uint64]]:
        """The n-grams made so far, from n = 1 on."""
        return [hash_ngrams(self._word_numbers, 1)]

    def hash_ngrams(self, n: int) -> NDArray[np.uint64]:
        """Return a number for each n-gram of words, equal for equal n-grams: (words − n + 1,) uint64."""
        made = self._n_grams
        while len(made) < n:
            made.append(mix_hash(made[-1][:-1], self._word_numbers[len(made) :]))
        return made[n - 1]

    @cached_property
    def _repeated(self) -> list[NDArray[np.int64]]:
        """The repeated n-grams found so far, from n = 2 on."""
        pairs = self.hash_ngrams(2)
        return [_repeated_places(pairs, np.arange(len(pairs)))]

    def repeated_n_grams(self, n: int) -> NDArray[np.int64]:
        """Return where the n-grams (n ≥ 2) that occur twice or more begin, in order: int64."""
        found = self._repeated
        while len(found) < n - 1:
            places = found[-1]  # a longer run repeats only where two shorter ones in a row do
            candidates = places[:-1][places[1:] == places[:-1] + 1]
            found.append(_repeated_places(self.hash_ngrams(len(found) + 2), candidates))
        return found[n - 2]


class CleaningStep(Protocol):
    """A step of the cleaning."""

    def __call__(self, document: CleaningDocument, /) -> CleaningDocument | Dropped:
        """Return the document, changed or not, or why it is left out."""


def _repeated_places(keys: NDArray[np.uint64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places, in order, whose key occurs at another of them too."""
    if len(places) < 2:
        return places[:0]
    order = np.argsort(keys[places])
    ordered = keys[places[order]]
    same = np.zeros(len(places) + 1, dtype=np.bool_)
    same[1:-1] = ordered[1:] == ordered[:-1]
    return np.sort(places[order[same[1:] | same[:-1]]])
