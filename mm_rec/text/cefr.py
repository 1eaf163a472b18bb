"""CEFR levels of words: which words of a sentence lie above a level, and which no list has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mm_rec.errors import ConfigError
from mm_rec.text.inflection import WordIndex

CEFR_LEVELS = ("A1", "A2", "B1", "B2", "C1", "C2")


def require_cefr_level(level: str) -> str:
    """Return the level in capitals; raises ConfigError for one that is not of the CEFR."""
    if level.upper() not in CEFR_LEVELS:
        raise ConfigError(f"the level {level!r} is not known; choose one of {', '.join(CEFR_LEVELS)}")
    return level.upper()


@dataclass(frozen=True, slots=True)
class LevelCheck:
    """The words of a sentence, as written, that a list has above a level, and those that it has not at all."""

    above: tuple[str, ...]
    unknown: tuple[str, ...]


class WordLevels:
    """The level of words and phrases in any of their forms.

    A word has the lowest level of all entries that it is a form of: "saw" is a form of "see". One that belongs to a
    phrase has the phrase's where that is lower: "course" in "of course". Numbers in digits, and words with a capital
    letter that no list has (names), have no level and are neither above nor unknown; so an unknown word at the
    beginning of a sentence is taken for a name.
    """

    def __init__(self, levels: Mapping[str, str], language: str = "en") -> None:
        self._ranks = {word: CEFR_LEVELS.index(level) for word, level in levels.items()}
        self._index = WordIndex(self._ranks, language)

    def check(self, sentence: str, level: str, allowed: Collection[str] = ()) -> LevelCheck:
        """Compare a sentence with a level; words of `allowed`, as they stand in the sentence, are passed over."""
        highest = CEFR_LEVELS.index(level)
        above, unknown = [], []
        for token, entries in self._index.match_tokens(sentence):
            if token in allowed or not token[0].isalpha():
                continue
            if not entries:
                unknown += [] if token[0].isupper() else [token]
            elif min(self._ranks[entry] for entry in entries) > highest:
                above.append(token)
        return LevelCheck(tuple(above), tuple(unknown))
