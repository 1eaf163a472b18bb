"""The grammar of Turkish for the story generator: the forms that a word of each kind has.

The forms come from `noun` and `name`, which know vowel harmony, buffer letters, hard consonants and the
apostrophe of names; a stem that softens is written beside its word ("kitap/kitab").
"""

from functools import cache

from mm_rec.stories.language_files import load_language
from mm_rec.stories.patterns import Grammar, StoryLanguage, Word

_HIGH = {"a": "ı", "ı": "ı", "e": "i", "i": "i", "o": "u", "u": "u", "ö": "ü", "ü": "ü"}
_LOW = {"a": "a", "ı": "a", "o": "a", "u": "a", "e": "e", "i": "e", "ö": "e", "ü": "e"}
_HARD = "fstkçşhp"


def capitalise(sentence: str) -> str:
    """Return `sentence` with its first letter in upper case the Turkish way (i becomes İ, ı becomes I)."""
    first = sentence[:1]
    return ("İ" if first == "i" else first.upper()) + sentence[1:]


def _last_vowel(word: str) -> str:
    lowered = word.replace("İ", "i").replace("I", "ı").lower()
    return next(letter for letter in reversed(lowered) if letter in _HIGH)


def noun(plain: str, softened: str = "") -> Word:
    """Return a common noun or adjective with its forms.

    Forms: acc, gen, dat, loc, abl; own, own_acc, own_gen, own_dat (with the possessive "his or her");
    too ("de" or "da", the separate particle); is_ (with the copula "-dir").
    `softened` is the stem before a vowel where the last consonant changes ("kitab" for "kitap").
    """
    high, low = _HIGH[_last_vowel(plain)], _LOW[_last_vowel(plain)]
    vowel_end = plain[-1] in _HIGH
    stem = softened or plain
    own = f"{stem}{'s' if vowel_end else ''}{high}"
    hard = "t" if plain[-1] in _HARD else "d"
    return Word(
        plain,
        acc=f"{stem}{'y' if vowel_end else ''}{high}",
        gen=f"{stem}{'n' if vowel_end else ''}{high}n",
        dat=f"{stem}{'y' if vowel_end else ''}{low}",
        loc=f"{plain}{hard}{low}",
        abl=f"{plain}{hard}{low}n",
        own=own,
        own_acc=f"{own}n{high}",
        own_gen=f"{own}n{high}n",
        own_dat=f"{own}n{low}",
        too=f"d{low}",
        is_=f"{plain}{hard}{high}r",
    )


def name(plain: str) -> Word:
    """Return a proper name with its forms behind an apostrophe (acc, gen, dat, loc, abl) and `too`."""
    common = noun(plain)
    cases = {
        case: f"{plain}'{common.form(case)[len(plain) :]}" for case in ("acc", "gen", "dat", "loc", "abl")
    }
    return Word(plain, too=common.form("too"), **cases)


def _listed_noun(entry: str) -> Word:
    return noun(*entry.split("/"))


_GRAMMAR = Grammar(
    kinds={"noun": _listed_noun, "name": name, "spot": lambda phrase: Word(phrase, abl=f"{phrase}n")},
    fact_word=_listed_noun,
    capitalise=capitalise,
)


@cache
def turkish() -> StoryLanguage:
    """Return what the generator writes Turkish with."""
    return load_language("tr", _GRAMMAR)
