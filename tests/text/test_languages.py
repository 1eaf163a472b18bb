"""Languages: the lists are in the form in which they are looked up, and an unknown code is an error."""

from __future__ import annotations

import pytest

from mm_rec.errors import ConfigError
from mm_rec.text.languages import get_language
from mm_rec.text.words import lower


@pytest.mark.parametrize("code", ["tr", "en"])
def test_lists_are_long_enough_and_in_small_letters_of_the_language(code):
    known = get_language(code)
    assert len(known.stop_words) >= 100 and len(known.abbreviations) >= 60
    for word in known.stop_words | known.abbreviations:
        assert word == lower(word, code)
        assert not word.endswith(".") and len(word) > 0


@pytest.mark.parametrize("code", ["tr", "en"])
def test_what_may_close_a_sentence_is_an_abbreviation(code):
    known = get_language(code)
    assert known.closing_abbreviations < known.abbreviations


def test_turkish_lists_hold_words_that_only_turkish_casing_finds():
    turkish = get_language("tr")
    assert lower("İÇİN", "tr") in turkish.stop_words
    assert lower("ARTIK", "tr") in turkish.stop_words
    assert lower("FIK", "tr") in turkish.abbreviations


def test_an_unknown_language_is_an_error_that_names_those_that_are_known():
    with pytest.raises(ConfigError, match="'xx' is not known; known are: tr, en"):
        get_language("xx")
