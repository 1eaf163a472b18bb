"""Text normalisation: line ends, spaces, invisible characters, apostrophes, wrongly decoded letters.

Nothing that a reader sees is lost: letters keep their marks, quotes and dashes stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from mm_rec.errors import needs_extra
from mm_rec.text.words import lower

_SOFT_LINE_END = re.compile("\u00ad[ \t]*\n[ \t]*")
_LINE_BREAKS = "\r\v\f\u2028\u2029"
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
# Controls, soft hyphens, zero-width characters, marks of direction and byte order, tags, halves of surrogate pairs.
_INVISIBLE = (
    "\x00-\x08\x0e-\x1f\x7f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0001\U000e0020-\U000e007f"
)
# None of them is printable: most text is known to be free of them without a search.
_ODD = re.compile(f"[{_LINE_BREAKS}{_SPACES}{_INVISIBLE}]")
_PICTURE = "\u2190-\u2bff\U0001f000-\U0001faff"
# The other zero-width joiners hold emoji together.
_STRAY_JOINER = re.compile(f"\u200d(?<![{_PICTURE}\ufe0f].)|\u200d(?![{_PICTURE}])")
_APOSTROPHE = re.compile(r"[’ʼ´‘](?<=[^\W_].)(?=[^\W\d_])")
_BACKTICK = re.compile(r"`(?<=[^\W_].)(?=[^\W\d_])")
_OPENING_BACKTICK = re.compile(r"(?<![^\W_])`")  # program text, as Markdown has it
_SECOND_DOT = re.compile("([iıİ])\u0307")
_MANY = 100  # characters; fewer are replaced faster one after the other, more would take too long
_BLANK_LINES = re.compile(r"\n{3,}")

# UTF-8 read as Windows-1252, Windows-1254 or Latin-1: Ã¼ for ü, ÅŸ for ş, â€™ for ’, ðŸ… for an emoji.
_CONTINUATION = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_UTF8_MISREAD = re.compile(f"[ÂÃÄÅâð]{_CONTINUATION}(?:(?<=[ÂÃÄÅ].)|{_CONTINUATION})")
_TURKISH_UTF8_MISREAD = {"Ä±": "ı", "Ä°": "İ", "ÄŸ": "ğ", "Äž": "Ğ", "ÅŸ": "ş", "Åž": "Ş"}
_C1 = re.compile("[\u0080-\u009f]")

# Turkish in Windows-1254 or ISO 8859-9, read as Windows-1252 or Latin-1.
_TURKISH_MISREAD = re.compile("[ýþðÝÞÐ]")
_TURKISH_LETTERS = str.maketrans("ýþðÝÞÐ", "ışğİŞĞ")
# What such text cannot hold: letters outside that reading, ı, ş and ğ read rightly, and ý beside a vowel, where it is a
# consonant (Turkmen, Icelandic); ı never stands there.
_OTHER_LANGUAGE = re.compile(r"[^\W\d_a-zA-ZçÇöÖüÜâÂîÎûÛýþðÝÞÐ]|[aeiouöüâîû]ý|ý[aeiouöüâîû]")
# What the languages that have these letters do not hold: Icelandic, Faroese, Czech, Slovak, Vietnamese, Turkmen.
_CERTAIN_SIGN = re.compile(r"[^\W\d_]þ(?![aeiouöüýâîûjrvb])|['’´`‘][nsy]?ý", re.IGNORECASE)
_CONSONANT = "[bcçdfghjklmnprstvyz]"
_SIGN = re.compile(
    r"[çü]|[ouý]ðý|ýþ|larý|\bÝ[çklnsyz]"
    # Vowel harmony: ı follows a or ı. Not what may be an ending of Czech (-ým, -ých).
    rf"|[aâý]{_CONSONANT}{{1,2}}ý(?={_CONSONANT}|þ)(?!mi?\b|ch)"
    r"|['’´`‘](?:n?[iu]n|[dt][ae]n?|n?[ae]|y[iae])\b|(?:yor|mek|mak|leri|dir)\b"
    r"|\b(?:bir|bu|ile|ise|olan|olarak|daha|kadar|gibi|sonra|ama|ancak|veya|göre|diye|iki)\b",
    re.IGNORECASE,
)
_SUSPECT_LETTERS = "ýþðÝÞÐÂÃÄÅâ"
# Any of the three: one look at clean text, and a pattern that begins with a set of characters is searched for fast.
_SUSPECT = re.compile(
    f"[ýþðÝÞÐ\u0080-\u009fÂÃÄÅâ](?:(?<=[ýþðÝÞÐ\u0080-\u009f])|{_CONTINUATION}(?:(?<=[ÂÃÄÅ].)|{_CONTINUATION}))"
)


def normalise(text: str) -> str:
    """Normalise a text; doing it again changes nothing.

    Line ends are \\n, characters composed (NFC), spaces plain, apostrophes inside words straight; invisible characters,
    spaces at line ends and blank lines beside another are gone, words divided by a soft hyphen at a line end are whole,
    and wrongly decoded letters are repaired (`repair_mojibake`).
    """
    while True:
        result = _tidy(repair_mojibake(text))
        # What was tidied away may have hidden a wrongly decoded letter. Every further pass shortens or repairs.
        if result == text or not _is_suspect(result):
            return result
        text = result


def repair_dotted_i(text: str) -> tuple[str, int]:
    """Remove second dots on i from normalised Turkish text; returns the text, and how many there were.

    U+0307 after an i is what programs without a language leave of İ in small letters; Turkish has no such letter.
    """
    if "\u0307" not in text:
        return text, 0
    mended, count = _SECOND_DOT.subn(lambda match: "İ" if match[1] == "İ" else "i", text)
    return (normalise(mended) if count else text), count


def repair_mojibake(text: str) -> str:
    """Repair wrongly decoded letters; lines without signs of it stay as they are.

    UTF-8 read as Windows-1252 and its kin (ftfy, https://ftfy.readthedocs.io); Windows-1252 read as Latin-1; Turkish
    Windows-1254 read as Windows-1252 or Latin-1 (ý þ ð for ı ş ğ). Raises MissingExtraError where ftfy is needed and
    not installed.
    """
    if text.isascii() or not _is_suspect(text):
        return text
    text = _repair_lines(text, _UTF8_MISREAD, _fix_encoding)
    text = _C1.sub(lambda character: character[0].encode("latin-1").decode("cp1252", "ignore"), text)
    return _repair_lines(text, _TURKISH_MISREAD, _repair_turkish)


def dedup_key(text: str, language: str | None = None) -> str:
    """Return a key that copies of a text share: small letters of the language with their marks, digits, single spaces.

    Apostrophes vanish, so that İzmir'de, İzmir’de and İzmirde are one word; other punctuation is space.
    """
    text = lower(text, language)
    others = {character: _in_key(character) for character in set(text) if not character.isalnum()}
    return unicodedata.normalize("NFC", " ".join(_replace_characters(text, others).split()))


def _is_suspect(text: str) -> bool:
    """Return whether a sign of wrong decoding occurs. Letters are looked for first: far faster than the pattern."""
    return (any(letter in text for letter in _SUSPECT_LETTERS) or _has_c1(text)) and bool(
        _SUSPECT.search(text)
    )


def _has_c1(text: str) -> bool:
    """Return whether control characters of Latin-1 may occur: none is printable."""
    return not text.replace("\n", "").replace("\t", "").isprintable()


def _in_key(character: str) -> str:
    """Return the replacement in a dedup key of a character that is no letter and no digit."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return character
    return "" if character in "'’ʼ´`‘" or category == "Cf" else " "


def _tidy(text: str) -> str:
    text = _replace_odd_characters(text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if any(mark in text for mark in "’ʼ´‘"):
            text = _APOSTROPHE.sub("'", text)
    if "`" in text:
        text = _repair_lines(text, _BACKTICK, _straighten_backticks)
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.rstrip(" \t\n").lstrip("\n")


def _replace_odd_characters(text: str) -> str:
    """Remove characters that print nothing, and make spaces and line ends plain."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    odd = set(_ODD.findall(text))
    if "\r" in odd:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\u00ad" in odd:
        text = _SOFT_LINE_END.sub("", text)
    text = _replace_characters(text, {character: _in_plain_text(character) for character in odd})
    return _STRAY_JOINER.sub("", text) if "\u200d" in text else text


def _in_plain_text(odd: str) -> str:
    if odd in _LINE_BREAKS:
        return "\n"
    return " " if unicodedata.category(odd) == "Zs" else ""


def _replace_characters(text: str, table: dict[str, str]) -> str:
    if len(table) > _MANY:
        return text.translate({ord(character): replacement for character, replacement in table.items()})
    for character, replacement in table.items():
        text = text.replace(character, replacement)
    return text


def _repair_lines(text: str, sign: re.Pattern[str], repair: Callable[[str], str]) -> str:
    """Repair the lines in which a sign occurs."""
    if not sign.search(text):
        return text
    return "\n".join([repair(line) if sign.search(line) else line for line in text.split("\n")])


def _fix_encoding(line: str) -> str:
    with needs_extra("data", "repairing wrongly decoded text"):
        from ftfy import fix_encoding
    line = fix_encoding(line)
    for (
        misread,
        letter,
    ) in _TURKISH_UTF8_MISREAD.items():  # ftfy leaves them beside letters that were read rightly
        line = line.replace(misread, letter)
    return line


def _repair_turkish(line: str) -> str:
    """Restore ı, ş and ğ where signs of Turkish outweigh those of another language.

    Two different signs are enough, or a certain one; each sign against them needs three more.
    """
    signs = {sign.lower() for sign in _SIGN.findall(line)}
    certain = _CERTAIN_SIGN.search(line) is not None
    against = len(_OTHER_LANGUAGE.findall(line))
    return line.translate(_TURKISH_LETTERS) if len(signs) + 2 * certain >= 2 + 3 * against else line


def _straighten_backticks(line: str) -> str:
    return line if _OPENING_BACKTICK.search(line) else _BACKTICK.sub("'", line)
