"""The measures of the quality rules, each a number of a document; `thresholds.yaml` has the accepted ranges.

The measures are those of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, section A.1.1 and table A1),
C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2) and FineWeb (Penedo et al. 2024,
https://arxiv.org/abs/2406.17557, section 3.6), over words without punctuation. `tests/cleaning/test_measures.py` has
the same measures in their slow, literal form.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import filterfalse
from operator import itemgetter

import numpy as np

from mm_rec.cleaning.document import CleaningDocument
from mm_rec.text.sentences import count_sentences
from mm_rec.text.words import lower

SHORT_LINE = 30  # characters (FineWeb)
FEW_LINES = 3
_BULLETS = frozenset("•‣▪◦·*-–")
_BULLET = re.compile(rf"^[^\S\n]*[{re.escape(''.join(_BULLETS))}][^\S\n]", re.MULTILINE)
_ENDING_ELLIPSIS = re.compile(r"(?:\.\.\.|…)[^\S\n]*$", re.MULTILINE)
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
_ASCII_DIGITS = b"0123456789"
# The first bytes in UTF-8 of characters from U+0640 on, before which there are no other digits; punctuation (U+2000 to
# U+2FFF) has none either.
_BEFORE_OTHER_DIGITS = bytes({*range(0xD9, 0xF5)} - {0xE2})
_LOREM_IPSUM = re.compile("lorem ipsum", re.IGNORECASE)
_TERMINAL = (".", "!", "?", "…", '."', '!"', '?"', ".”", "!”", "?”", ".'", ".)", "!)", "?)")


Measure = Callable[[CleaningDocument], float]
MEASURES: dict[str, Measure] = {}


def measure(function: Measure) -> Measure:
    """Let the rules of thresholds.yaml use a function by its name; the report shows its docstring's first line."""
    MEASURES[function.__name__] = function
    return function


@measure
def words(document: CleaningDocument) -> float:
    """Number of words."""
    return len(document.words)


@measure
def mean_word_length(document: CleaningDocument) -> float:
    """Characters a word."""
    return int(document.word_lengths.sum()) / len(document.words) if document.words else 0.0


@measure
def hashes(document: CleaningDocument) -> float:
    """Signs # a word."""
    return document.text.count("#") / max(1, len(document.words))


@measure
def ellipses(document: CleaningDocument) -> float:
    """Ellipses a word."""
    return (document.text.count("...") + document.text.count("…")) / max(1, len(document.words))


@measure
def bullet_lines(document: CleaningDocument) -> float:
    """Share of lines that begin with a bullet."""
    if _BULLETS.isdisjoint(map(itemgetter(0), document.lines)):
        return 0.0
    return len(_BULLET.findall(document.text)) / len(document.lines)


@measure
def ellipsis_lines(document: CleaningDocument) -> float:
    """Share of lines that end with an ellipsis."""
    if "…" not in document.text and "..." not in document.text:
        return 0.0
    return len(_ENDING_ELLIPSIS.findall(document.text)) / max(1, len(document.lines))


@measure
def words_with_letters(document: CleaningDocument) -> float:
    """Share of words with at least one letter."""
    without = sum(1 for word in filterfalse(str.isalpha, document.words) if not _LETTERS.search(word))
    return (len(document.words) - without) / max(1, len(document.words))


@measure
def stop_words(document: CleaningDocument) -> float:
    """Number of different stop words of the language."""
    known = document.language.stop_words
    found = len(known.intersection(document.words))
    # Capitals matter only where there are few, so that most pages are not lowered.
    return (
        found
        if found > 2
        else len(known.intersection(lower(" ".join(document.words), document.language.code).split()))
    )


@measure
def sentences(document: CleaningDocument) -> float:
    """Number of sentences."""
    return count_sentences(document.text, document.language.code)


def sentences_up_to(document: CleaningDocument, enough: float) -> float:
    """The number of sentences where there are fewer than `enough`, or else a number that is not below it."""
    return count_sentences(document.text, document.language.code, math.ceil(enough))


@measure
def digits(document: CleaningDocument) -> float:
    """Share of digits among the characters."""
    encoded = document.encoded
    if len(encoded.translate(None, _BEFORE_OTHER_DIGITS)) == len(encoded):
        found = len(encoded) - len(encoded.translate(None, _ASCII_DIGITS))
    else:
        found = sum(map(len, _DIGITS.findall(document.text)))
    return found / max(1, len(document.text))


@measure
def word_characters(document: CleaningDocument) -> float:
    """Share of the characters that are not white space that lies in words and numbers."""
    visible = len(document.text) - sum(map(document.text.count, " \n\t"))
    return int(document.word_lengths.sum()) / max(1, visible)


@measure
def duplicate_lines(document: CleaningDocument) -> float:
    """Share of lines that stood earlier on the page."""
    return 1 - len(set(document.lines)) / max(1, len(document.lines))


@measure
def duplicate_line_characters(document: CleaningDocument) -> float:
    """Share of the characters that lies in lines that stood earlier."""
    return _repeated_characters(document.lines) / max(1, len(document.text))


@measure
def duplicate_paragraphs(document: CleaningDocument) -> float:
    """Share of paragraphs that stood earlier on the page."""
    return 1 - len(set(document.paragraphs)) / max(1, len(document.paragraphs))


@measure
def duplicate_paragraph_characters(document: CleaningDocument) -> float:
    """Share of the characters that lies in paragraphs that stood earlier."""
    return _repeated_characters(document.paragraphs) / max(1, len(document.text))


@measure
def punctuated_lines(document: CleaningDocument) -> float:
    """Share of lines that end as a sentence does; 1 where there are too few lines to say."""
    if len(document.lines) < FEW_LINES:
        return 1.0
    return sum(line.endswith(_TERMINAL) for line in document.lines) / max(1, len(document.lines))


@measure
def short_lines(document: CleaningDocument) -> float:
    """Share of lines of at most 30 characters."""
    return sum(len(line) <= SHORT_LINE for line in document.lines) / max(1, len(document.lines))


@measure
def curly_brackets(document: CleaningDocument) -> float:
    """Number of opening curly brackets, a sign of program text."""
    return document.text.count("{")


@measure
def lorem_ipsum(document: CleaningDocument) -> float:
    """Number of times that the printers' filler text occurs."""
    if b"psum" not in document.encoded.lower() and "ſ" not in document.text:  # ſ is a small s too
        return 0
    return len(_LOREM_IPSUM.findall(document.text))


@measure
def newlines(document: CleaningDocument) -> float:
    """Line ends a word."""
    return document.text.count("\n") / max(1, len(document.words))


def top_n_gram(document: CleaningDocument, n: int) -> float:
    """Share of the characters that lies in the most frequent n-gram of words."""
    if len(document.words) < n:
        return 0.0
    places = document.repeated_n_grams(n)
    first, most = 0, 1
    if len(places):
        keys = document.hash_ngrams(n)[places].tolist()
        # Of several that are equally frequent, the first on the page; in a Counter too the first comes first.
        key, most = max(Counter(keys).items(), key=itemgetter(1))
        first = int(places[keys.index(key)])
    return most * (int(document.word_lengths[first : first + n].sum()) + n - 1) / len(document.text)


def duplicate_n_grams(document: CleaningDocument, n: int) -> float:
    """Share of the characters that lies in n-grams of words that stood earlier, none counted twice."""
    places = document.repeated_n_grams(n)
    if not len(places):
        return 0.0
    ends = np.concatenate(([0], np.cumsum(document.word_lengths)))
    sizes = (ends[places + n] - ends[places]).tolist()
    seen: set[int] = set()
    characters, free = 0, 0
    for place, key, size in zip(
        places.tolist(), document.hash_ngrams(n)[places].tolist(), sizes, strict=True
    ):
        if place < free:  # inside an n-gram that was counted
            continue
        if key in seen:
            characters += size
            free = place + n
        else:
            seen.add(key)
    return characters / len(document.text)


def _repeated_characters(items: list[str]) -> int:
    """Characters of all items but the first of each kind."""
    different = set(items)
    if len(different) == len(items):
        return 0
    return sum(map(len, items)) - sum(map(len, different))


MEASURES |= {f"top_{n}_gram": partial(top_n_gram, n=n) for n in (2, 3, 4)}
MEASURES |= {f"duplicate_{n}_grams": partial(duplicate_n_grams, n=n) for n in (5, 6, 7, 8, 9, 10)}
