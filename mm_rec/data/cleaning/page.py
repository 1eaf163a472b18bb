"""A document on its way through the cleaning steps: its text, what was cut from it, and its words and lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mm_rec.text.languages import Language
from mm_rec.text.overlap import n_grams, word_numbers

REPEATED_RUN = 5  # words
# Letters and digits; apostrophes, hyphens and separators of numbers join (İzmir'de, e-posta, 1.250,50).
_WORD = re.compile(r"\w+(?:['’.,\-]\w+)*")


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of text that a step took out of a document, and why."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a whole document is left out: the rule, and what it measured beside its limit."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """A text in a language. Words and lines are cut once, however many rules look at them."""

    text: str
    language: Language
    cuts: tuple[Cut, ...] = ()

    def with_text(self, text: str, cuts: Iterable[Cut] = ()) -> Page:
        """This page with another text, and what was cut out on the way."""
        cuts = tuple(cuts)
        return self if text == self.text and not cuts else Page(text, self.language, self.cuts + cuts)

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
        return _WORD.findall(self.text)

    @cached_property
    def word_lengths(self) -> NDArray[np.int64]:
        """Characters of each word: (words,) int64."""
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def word_numbers(self) -> NDArray[np.uint64]:
        """A number for each word, equal for equal words: (words,) uint64."""
        return word_numbers(self.words)

    @cached_property
    def repeats_itself(self) -> bool:
        """Whether a run of REPEATED_RUN words stands on the page twice."""
        ordered = np.sort(n_grams(self.word_numbers, REPEATED_RUN))
        return bool((ordered[1:] == ordered[:-1]).any())
