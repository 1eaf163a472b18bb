"""Search for words in sentences in any of their inflected forms, by the rules of the language.

English and Turkish have rules (english_inflection, turkish_inflection); in another language a word is found as it is
written, in capitals or small letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mm_rec.text import english_inflection, turkish_inflection
from mm_rec.text.words import lower, words

EntryWord = str  # one of the words that an entry such as "bus stop" is made of, in small letters


class WordIndex:
    """An index of words, or phrases, to look up in sentences: "bus stop" is found in "two bus stops"."""

    def __init__(self, entries: Iterable[str], language: str = "en") -> None:
        self._language = language
        self._by_first: dict[EntryWord, list[tuple[str, list[EntryWord]]]] = {}
        pieces: dict[EntryWord, None] = {}
        for entry in dict.fromkeys(entries):
            if found := [lower(word, language).replace("’", "'") for word in words(entry)]:
                self._by_first.setdefault(found[0], []).append((entry, found))
                pieces.update(dict.fromkeys(found))
        self._forms = _LANGUAGES.get(language, _AsWritten)(pieces)

    def find(self, sentence: str) -> set[str]:
        """Return the entries that a sentence holds."""
        return {entry for _, found in self.match_tokens(sentence) for entry in found}

    def match_tokens(self, sentence: str) -> list[tuple[str, set[str]]]:
        """Return the words of a sentence, as written, each with the entries of which it is a form or a part."""
        tokens = words(sentence)
        rows = [self._forms.pieces(lower(token, self._language)) for token in tokens]
        found: list[set[str]] = [set() for _ in tokens]
        for first, row in enumerate(rows):
            for piece in row:
                for entry, pieces in self._by_first.get(piece, ()):
                    following = rows[first : first + len(pieces)]
                    if len(following) == len(pieces) and all(map(set.__contains__, following, pieces)):
                        for place in range(first, first + len(pieces)):
                            found[place].add(entry)
        return list(zip(tokens, found, strict=True))


def contains_word(sentence: str, word: str, language: str = "en") -> bool:
    """Return whether a sentence holds a word or phrase in any form: "went" is go, "don't" is do and not."""
    return bool(WordIndex([word], language).find(sentence))


class _FormTable(Protocol):
    def __init__(self, pieces: Iterable[EntryWord]) -> None: ...

    def pieces(self, token: str) -> set[EntryWord]:
        """Return the pieces that a token in small letters is a form of."""


class _AsWritten:
    def __init__(self, pieces: Iterable[EntryWord]) -> None:
        self._known = set(pieces)

    def pieces(self, token: str) -> set[EntryWord]:
        return {token} & self._known


class _English:
    """A table of all forms of all pieces."""

    def __init__(self, pieces: Iterable[EntryWord]) -> None:
        self._of: dict[str, set[EntryWord]] = {}
        for piece in pieces:
            for form in english_inflection.inflections(piece):
                self._of.setdefault(form, set()).add(piece)

    def pieces(self, token: str) -> set[EntryWord]:
        return {
            piece for part in english_inflection.expand_contraction(token) for piece in self._of.get(part, ())
        }


class _Turkish:
    """A table of the stems of all pieces; a token is tried with each of its beginnings."""

    def __init__(self, pieces: Iterable[EntryWord]) -> None:
        self._of: dict[str, list[tuple[EntryWord, turkish_inflection.Stem]]] = {}
        for piece in pieces:
            for stem in turkish_inflection.stems(piece):
                self._of.setdefault(stem[0], []).append((piece, stem))

    def pieces(self, token: str) -> set[EntryWord]:
        return {
            piece
            for part in turkish_inflection.without_apostrophe(token)
            for end in range(1, len(part) + 1)
            for piece, stem in self._of.get(part[:end], ())
            if turkish_inflection.is_inflection(part, stem)
        }


_LANGUAGES: dict[str, type[_FormTable]] = {"en": _English, "tr": _Turkish}
KNOWN_LANGUAGES = frozenset(_LANGUAGES)
