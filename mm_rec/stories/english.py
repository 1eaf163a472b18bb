"""The grammar of English for the story generator: the forms that a word of each kind has."""

from collections.abc import Callable
from functools import cache

from mm_rec.stories.language_files import load_language
from mm_rec.stories.patterns import Grammar, StoryLanguage, Word


def capitalise(sentence: str) -> str:
    """Return `sentence` with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]


def with_article(word: str) -> str:
    """Return `word` behind its indefinite article, decided by its first letter ("an apple", "a ball")."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _person(he: str, him: str, his: str) -> Callable[[str], Word]:
    return lambda name: Word(name, he=he, him=him, his=his)


def _place(at: str) -> Callable[[str], Word]:
    return lambda word: Word(word, the=f"the {word}", to=f"to the {word}", at=f"{at} the {word}")


_GRAMMAR = Grammar(
    kinds={
        "noun": lambda word: Word(word, a=with_article(word)),
        "mass": lambda word: Word(word, a=f"some {word}"),
        "plural": lambda word: Word(f"{word}s"),
        "phrase": Word,
        "she": _person("she", "her", "her"),
        "he": _person("he", "him", "his"),
        "in_the": _place("in"),
        "at_the": _place("at"),
        "on_the": _place("on"),
        "by_the": _place("by"),
    },
    fact_word=Word,
    capitalise=capitalise,
)


@cache
def english() -> StoryLanguage:
    """Return what the generator writes English with."""
    return load_language("en", _GRAMMAR)
