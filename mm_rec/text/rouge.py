"""ROUGE-L by a bit-parallel longest common subsequence of two lists of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words."""
    return _lcs_length(_places(a), len(a), b)


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return ROUGE-L of two lists of words: the F1 of their LCS (Lin 2004); 0 where one is empty."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


def most_similar(text: Sequence[str], others: Iterable[Sequence[str]]) -> tuple[float, int]:
    """Return the highest ROUGE-L of a list of words with any of the others, and the first that has it; or (0, −1).

    Others that are too long or too short to come closer are not compared: the subsequence has at most the words of
    the shorter.
    """
    places, best, index = _places(text), 0.0, -1
    for number, other in enumerate(others):
        both = len(text) + len(other)
        if 2 * min(len(text), len(other)) > best * both:
            score = 2 * _lcs_length(places, len(text), other) / both
            if score > best:
                best, index = score, number
    return best, index


def _places(words: Sequence[str]) -> dict[str, int]:
    """Return for each word an integer in which the bits of its positions are set."""
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    return places


def _lcs_length(places: dict[str, int], length: int, words: Sequence[str]) -> int:
    """A row of the dynamic programme as one integer, whose zero bits are the steps of its values.

    Crochemore et al. 2001 (Information Processing Letters 80), in the form of Hyyrö 2004 (Bit-parallel LCS-length
    computation revisited, figure 4). Carries leave at the top, so the row is cut back to its `length` bits.
    """
    full = row = (1 << length) - 1
    for word in words:
        if mask := places.get(word):
            matched = row & mask
            row = ((row + matched) | (row - matched)) & full
    return length - row.bit_count()
