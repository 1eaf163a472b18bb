"""Words and letter case, right for the language.

In Turkish and Azerbaijani I is the capital of ı and İ that of i; in every other language i and I are a pair.
"""

from __future__ import annotations

import re
import unicodedata

DOTTED_LANGUAGES = frozenset({"tr", "az"})
_TURKISH_LETTERS = frozenset("ğĞşŞıİ")

# A number with its separators, or letters and digits with combining marks; apostrophes join (don't, İzmir'de).
_MARKED = r"(?:[^\W_][\u0300-\u036f]*)+"
_WORD = re.compile(rf"\d+(?:[.,]\d+)+(?!\w)|{_MARKED}(?:['’]{_MARKED})*")


def words(text: str) -> list[str]:
    """Return the words and numbers of a text in order, without punctuation, composed (NFC)."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def lower(text: str, language: str | None = None) -> str:
    """Return the text in small letters as `language` (a code such as "tr") has them, composed (NFC).

    İ becomes a plain i in every language, and not the i with a second dot that Unicode prescribes without one.
    """
    text = unicodedata.normalize("NFC", text).replace("İ", "i")
    if language in DOTTED_LANGUAGES:
        text = text.replace("I", "ı")
    # The second dot is what programs without a language leave of İ; much Turkish text holds it.
    return text.lower().replace("i\u0307", "i")


def guess_language(text: str) -> str:
    """Return "tr" for a text with a letter that Turkish has and English has not, otherwise "en"."""
    return "tr" if _TURKISH_LETTERS & set(unicodedata.normalize("NFC", text)) else "en"
