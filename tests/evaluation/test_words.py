"""Words and letter case, Turkish above all."""

from __future__ import annotations

import unicodedata

import pytest

from mm_rec.text.words import guess_language, lower, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, it's 3.14!", ["Don't", "stop", "it's", "3.14"]),
        ("İzmir'de 1.234,5 lira; Ayşe’nin.", ["İzmir'de", "1.234,5", "lira", "Ayşe’nin"]),
        ("well-known (1999) 2nd", ["well", "known", "1999", "2nd"]),
        ("'quoted' – x_y", ["quoted", "x", "y"]),
        ("  \n… 👍", []),
        ("kâr hâlâ", ["kâr", "hâlâ"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert words(unicodedata.normalize("NFD", text)) == expected


def test_lower_follows_the_language() -> None:
    assert lower("IŞIK İZMİR Iğdır", "tr") == "ışık izmir ığdır"
    assert lower("IŞIK", "az") == "ışık"
    assert lower("I AM IN İZMİR", "en") == "i am in izmir"
    assert lower("TITLE") == "title"
    assert lower(unicodedata.normalize("NFD", "İĞ"), "tr") == "iğ"


def test_guess_language() -> None:
    assert guess_language("Kız geldi.") == "tr"
    assert guess_language("A girl came.") == "en"
    assert guess_language(unicodedata.normalize("NFD", "İki")) == "tr"
