"""Filters of generated tasks and answers, as in Self-Instruct (Wang et al. 2023, section 2.2).

A rejection is a reason to count by and, where there is one, a detail for the person who looks at what was dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mm_rec.text.languages import get_language
from mm_rec.text.rouge import most_similar
from mm_rec.text.words import guess_language, lower, words

MIN_TASK_WORDS, MAX_TASK_WORDS = 3, 150  # words of a task

# What a model that only writes cannot be given or make. Kept small: a rare good task that names one of them is lost.
_NOT_TEXT = {
    "tr": re.compile(
        r"\b(?:görsel|fotoğraf|resim|resmi(?:ni)? çiz|grafi[kğ]|diyagram|video|dosya|ekteki|ses kayd|ekran görüntü)\w*"
    ),
    "en": re.compile(
        r"\b(?:images?|pictures?|photos?|photographs?|graphs?|charts?|diagrams?|videos?|files?|attached|audio|"
        r"recordings?|screenshots?)\b"
    ),
}
# A last line up to this long, in words, may be a label, a name, a verse or an item of a list: none ends with a mark.
_SHORT_LINE = 10
_CLOSED = re.compile(r"[.!?…:;\"'”’»)\]*`|}]$")
_LIST_ITEM = re.compile(r"\s*(?:[-*•–]|\d{1,3}[.)])\s")


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why a task or an answer was dropped."""

    reason: str
    detail: str = ""


class SimilarityFilter:
    """A filter of tasks too similar to known ones, by ROUGE-L (F1 over words in small letters)."""

    def __init__(self, code: str, limit: float) -> None:
        self._code = code
        self._limit = limit
        self._known: dict[tuple[str, ...], str] = {}

    def add(self, task: str) -> None:
        """Remember a task."""
        self._known[self._words(task)] = task

    def reject(self, task: str) -> Rejection | None:
        """Reject a task too similar to a known one: the same words, or a ROUGE-L of the limit or more."""
        own = self._words(task)
        if own in self._known:
            return Rejection("duplicate", self._known[own])
        score, index = most_similar(own, self._known)
        if score >= self._limit:
            return Rejection("similar", f"ROUGE-L {score:.2f}: {list(self._known.values())[index]}")
        return None

    def _words(self, task: str) -> tuple[str, ...]:
        return tuple(words(lower(task, self._code)))


def reject_task(task: str, code: str) -> Rejection | None:
    """Reject a task for its length, for what it asks, or for its language."""
    count = len(words(task))
    if count < MIN_TASK_WORDS:
        return Rejection("too short", f"{count} words")
    if count > MAX_TASK_WORDS:
        return Rejection("too long", f"{count} words")
    if found := _NOT_TEXT[code].search(lower(task, code)):
        return Rejection("not text alone", found[0])
    return Rejection("other language", "the task") if _is_other_language(task, code) else None


def reject_answer(task: str, given: str, answer: str, code: str) -> Rejection | None:
    """Reject an answer to a task with an input ("" for none)."""
    own = words(lower(answer, code))
    if not own:
        return Rejection("empty answer")
    # Of an input, marks may be all that was to be corrected.
    if own == words(lower(task, code)) or answer.split() == given.split():
        return Rejection("answer repeats")
    last = answer.rstrip().rpartition("\n")[2]
    if len(words(last)) > _SHORT_LINE and not _CLOSED.search(last) and not _LIST_ITEM.match(last):
        return Rejection("unfinished answer", f"… {last[-60:]}")
    return Rejection("other language", "the answer") if _is_other_language(answer, code) else None


def _is_other_language(text: str, code: str) -> bool:
    """Return whether a text looks like our other language: by its function words, and the letters of Turkish alone.

    The letters do not suffice: many a short Turkish sentence has none of them. A text without any sign is let pass.
    """
    found = words(lower(text, code))
    signs = {known: sum(word in get_language(known).stop_words for word in found) for known in _NOT_TEXT}
    signs["tr"] += guess_language(text) == "tr"
    return any(signs[other] > signs[code] for other in signs if other != code)
