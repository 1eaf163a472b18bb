"""Words found in their forms: by hand in English and Turkish, and on real rows of word and sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_rec.errors import ConfigError
from mm_rec.text.cefr import LevelCheck, WordLevels, require_cefr_level
from mm_rec.text.english_inflection import inflections
from mm_rec.text.inflection import WordIndex, contains_word
from mm_rec.text.words import words


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("cat", "cats"),
        ("box", "boxes boxed boxing"),
        ("city", "cities"),
        ("play", "plays played playing"),
        ("stop", "stops stopped stopping"),
        ("open", "opened opening"),
        ("visit", "visited visiting"),
        ("show", "showed shown showing"),
        ("quit", "quitting"),
        ("make", "makes made making"),
        ("agree", "agreed agreeing"),
        ("lie", "lies lay lain lying"),
        ("travel", "travelled traveled travelling traveling"),
        ("prefer", "preferred preferring"),
        ("panic", "panicked panicking"),
        ("go", "goes went gone going"),
        ("be", "am is are was were been being"),
        ("have", "has had having"),
        ("potato", "potatoes"),
        ("photo", "photos"),
        ("child", "children"),
        ("policeman", "policemen"),
        ("knife", "knives"),
        ("big", "bigger biggest"),
        ("nice", "nicer nicest"),
        ("happy", "happier happiest"),
        ("good", "better best"),
        ("a", "an"),
    ],
)
def test_english_forms(word: str, others: str) -> None:
    assert {word, *others.split()} <= inflections(word)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("new", "news"),
        ("let", "letter"),
        ("let", "letted"),
        ("see", "seed"),
        ("hi", "his"),
        ("it", "its"),
        ("even", "evening"),
        ("stop", "stoped"),
        ("open", "openned"),
        ("bank", "banker"),
        ("corn", "corner"),
        ("her", "hers"),
    ],
)
def test_other_english_words_are_no_forms(word: str, other: str) -> None:
    assert other not in inflections(word)


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("I don't know.", "do"),
        ("I don’t know.", "not"),
        ("They can't swim.", "can"),
        ("We won't go.", "will"),
        ("I'm tired.", "be"),
        ("I'm tired.", "am"),
        ("She's here.", "is"),
        ("He'll come.", "will"),
        ("Let's go!", "us"),
        ("Tom's dog barks.", "Tom"),
        ("It is ten o'clock.", "o'clock"),
        ("Two buses left from the bus stops.", "bus stop"),
        ("Send me an e-mail.", "e-mail"),
        ("MUMS are great.", "Mum"),
        ("We ate at 3 p.m. yesterday.", "p.m."),
    ],
)
def test_found_in_english(sentence: str, word: str) -> None:
    assert contains_word(sentence, word, "en")


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("Tom's dog barks.", "is"),
        ("A bus will stop.", "bus stop"),
        ("He is a banker.", "bank"),
        ("", "dog"),
        ("The stopping bus", "bus stopping"),
    ],
)
def test_not_found_in_english(sentence: str, word: str) -> None:
    assert not contains_word(sentence, word, "en")


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("Kitabı aldım.", "kitap"),
        ("Ağaçların altında oturduk.", "ağaç"),
        ("Ağaca çıktı.", "ağaç"),
        ("Rengi güzel.", "renk"),
        ("Burnum akıyor.", "burun"),
        ("Senin hakkında konuştuk.", "hak"),
        ("Suyu iç.", "su"),
        ("Şehirdeyim.", "şehir"),
        ("Şehrimizde deniz var.", "şehir"),
        ("Evdekiler uyuyor.", "ev"),
        ("IŞIK söndü.", "ışık"),
        ("Ali'nin arabası.", "Ali"),
        ("İstanbul’dan geldim.", "İstanbul"),
        ("Bana bak.", "ben"),
        ("Onlar geldi.", "o"),
        ("Saatimi kaybettim.", "saat"),
        ("Gidiyorum.", "gitmek"),
        ("Eve gelmeyeceğim.", "gelmek"),
        ("Okula başlıyoruz.", "başlamak"),
        ("Diyor ki gelmez.", "demek"),
        ("Yapabilirim.", "yapmak"),
        ("Yazılan mektuplar.", "yazmak"),
        ("Ekmek yedik.", "ekmek"),
        ("Ekmek yedik.", "yemek"),
        ("Bize yardım etti.", "yardım etmek"),
    ],
)
def test_found_in_turkish(sentence: str, word: str) -> None:
    assert contains_word(sentence, word, "tr")


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("Evet, geldim.", "ev"),
        ("Evlat, otur.", "ev"),
        ("Atatürk geldi.", "at"),
        ("Kitapçıya gittim.", "kitap"),
        ("Olmaz.", "o"),
        ("Oda soğuk.", "o"),
        ("Burada bekle.", "bu"),
        ("Elma yedim.", "el"),
        ("Güneş doğdu.", "gün"),
        ("Değil.", "demek"),
        ("Arkadaşımla buluştum.", "bulmak"),
        ("Kadıner", "kadın"),  # no vowel harmony
        ("Isparta'da ISI düştü.", "isi"),
    ],
)
def test_not_found_in_turkish(sentence: str, word: str) -> None:
    assert not contains_word(sentence, word, "tr")


def test_another_language_is_searched_as_written() -> None:
    assert contains_word("Das HAUS ist alt.", "Haus", "de")
    assert not contains_word("Die Häuser sind alt.", "Haus", "de")


def test_the_words_of_a_sentence_are_covered_by_what_they_are_forms_of() -> None:
    index = WordIndex(["bus stop", "stop", "of course"])
    assert index.match_tokens("Of course, two bus stops!") == [
        ("Of", {"of course"}),
        ("course", {"of course"}),
        ("two", set()),
        ("bus", {"bus stop"}),
        ("stops", {"bus stop", "stop"}),
    ]


def test_levels_of_words() -> None:
    levels = WordLevels(
        {"see": "A1", "saw": "B2", "course": "B1", "of": "A1", "of course": "A1", "the": "A1"}
    )
    assert levels.check("Of course Tom saw 3 zebras.", "A1") == LevelCheck((), ("zebras",))
    assert levels.check("The course", "A1") == LevelCheck(("course",), ())
    assert levels.check("The course", "A1", allowed={"course"}) == LevelCheck((), ())
    assert levels.check("The course", "B1") == LevelCheck((), ())
    assert require_cefr_level("b2") == "B2"
    with pytest.raises(ConfigError, match="'D1' is not known; choose one of A1"):
        require_cefr_level("D1")


def test_real_sentences_hold_their_headwords(real_data: Callable[[str], Path]) -> None:
    """99 % of them do, and other headwords are not found much more often than as they are written."""
    lines = real_data("cefr/a1_examples_en_tr.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t")[:2] for line in lines]
    index = WordIndex(word for word, _ in rows)
    found = [index.find(sentence) for _, sentence in rows]
    assert sum(word in these for (word, _), these in zip(rows, found, strict=True)) > 0.99 * len(rows)
    assert not contains_word("I'm a banker.", "bank")  # what is missed is no form of its headword
    chance = random.Random(0)
    headwords = sorted({word for word, _ in rows})
    ours = plain = 0
    for (word, sentence), these in zip(rows, found, strict=True):
        other = chance.choice(headwords)
        if other != word:
            ours += other in these
            plain += other in words(sentence.lower())
    assert plain <= ours <= plain + 0.002 * len(rows)
