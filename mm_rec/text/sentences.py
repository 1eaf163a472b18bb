"""Sentence splitting by rule, with the abbreviations and the ordinals of the language.

A sentence ends at a blank line, and at a run of . ! ? … (with the closing quotes and brackets after it) before white
space. It goes on where a small letter follows on the same line, and where a single dot belongs to an abbreviation, an
initial or an ordinal. A line end alone is white space, because much text is wrapped; after such a run of marks it ends
the sentence even before a small letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from mm_rec.text.languages import LanguageRules, get_language
from mm_rec.text.words import lower

_CLOSING = "\"'”’»)]"
_OPENING = "\"'“”‘’«(["
# From the first mark of a run to its last, without trying again from those between: a million dots take no longer.
_END = re.compile(rf"[.!?…](?<![.!?…].)[.!?…]*+[{re.escape(_CLOSING)}]*+(?!\S)|\n\s*\n")
_NEXT = re.compile(rf"(\s*)[{re.escape(_OPENING)}\s]*(\S?)")
_INITIALS = re.compile(r"(?:[^\W\d_]{1,2}\.)*[^\W\d_]")
_ROMAN = re.compile(r"[IVXLC]+")
_LIST_NUMBER = re.compile(r"^[ \t]*\d{1,3}\Z", re.MULTILINE)
_LONGEST_ORDINAL = 3  # digits; a longer number before a dot and a capital is a year or a quantity
_WINDOW = 24  # characters before a dot that are looked at; what keeps its dot is shorter


def split_sentences(text: str, language_code: str = "tr") -> list[str]:
    """Return the sentences of a text in order, without the white space around them."""
    return [text[start:end].strip() for start, end in _spans(text, get_language(language_code))]


def count_sentences(text: str, language_code: str = "tr", enough: int | None = None) -> int:
    """Count the sentences that `split_sentences` finds, up to `enough`."""
    return sum(1 for _ in islice(_spans(text, get_language(language_code)), enough))


def _spans(text: str, known: LanguageRules) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence, white space around it included."""
    start = 0
    for end in _ends(text, known):
        if not text[start:end].isspace():
            yield start, end
        start = end
    if text[start:].strip():
        yield start, len(text)


def _ends(text: str, known: LanguageRules) -> Iterator[int]:
    """Yield where sentences end; a blank line may come right after another end."""
    for mark in _END.finditer(text):
        if mark[0][0] == "\n" or _ends_sentence(text, mark, known):
            yield mark.end()


def _ends_sentence(text: str, mark: re.Match[str], known: LanguageRules) -> bool:
    """Return whether a run of closing marks ends its sentence."""
    following = _NEXT.match(text, mark.end())
    assert following is not None  # it matches the empty string too
    gap, first = following.groups()
    if first.islower() and "\n" not in gap:
        return False
    dot = mark.start()
    before = text[max(0, dot - _WINDOW) : dot]
    if mark[0].rstrip(_CLOSING) != "." or not before or before[-1].isspace():
        return True
    word = before.split()[-1].lstrip(_OPENING)
    if word.isdecimal() and not known.dotted_ordinals:
        return not first.isdecimal() and not _LIST_NUMBER.search(text, max(0, dot - _WINDOW), dot)
    return not _keeps_dot(word, first, known)


def _keeps_dot(word: str, first: str, known: LanguageRules) -> bool:
    """Return whether the dot after `word` is the word's own; `first` is the first letter of what follows."""
    if word.isdecimal():
        return len(word) <= _LONGEST_ORDINAL
    if known.dotted_ordinals and _ROMAN.fullmatch(word):
        return True
    small = lower(word, known.code)
    if small in known.abbreviations:
        return not (small in known.closing_abbreviations and first.isupper())
    return word != "I" and word[-1:].isupper() and _INITIALS.fullmatch(word) is not None
