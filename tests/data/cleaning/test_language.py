from __future__ import annotations

from collections.abc import Iterable

import pytest

from mm_rec.data.cleaning.language import SAMPLE, LanguageConfig, identify, keep_language, sample
from mm_rec.data.cleaning.page import Drop, Page
from mm_rec.errors import ConfigError
from mm_rec.text.languages import language

CONFIG = LanguageConfig()
CANDIDATES = tuple(CONFIG.candidates)
TURKISH = (
    "Sabah erkenden uyandı ve pencereyi açtı; dışarıda ince bir yağmur yağıyordu, sokaklar boştu.",
    "Mutfağa gidip çay koydu, çünkü bu evde çay bir gelenek gibiydi ve herkes onu severdi.",
    "Kitabını aldı, kaldığı yeri buldu ve akşama kadar okumaya devam etti.",
)
ENGLISH = "The quick brown fox jumps over the lazy dog while everybody in the village is watching it."
AZERBAIJANI = "Azərbaycan dili türk dillərinə aiddir və ölkənin rəsmi dövlət dilidir, bunu hamı bilir."


def page(*lines: str) -> Page:
    return Page("\n".join(lines), language("tr"))


def dropped(result: Page | Drop) -> str:
    assert isinstance(result, Drop)
    assert result.reason == "language"
    return result.detail


def joined(sentences: Iterable[str], length: int) -> list[str]:
    texts, text = [], ""
    for sentence in sentences:
        text = f"{text} {sentence}".strip()
        if len(text) >= length:
            texts.append(text[:length])
            text = ""
    return texts


def test_real_documents_of_200_characters_are_told_apart(real_data):
    right, total = {}, {}
    for code in ("tr", "az", "en", "de", "fr", "es", "it", "nl"):
        sentences = real_data(f"lid/lingua_sentences_{code}.txt").read_text(encoding="utf-8").splitlines()
        found = [identify(text, CANDIDATES) for text in joined(sentences, 200)]
        right[code], total[code] = (
            sum(result is not None and result[0] == code for result in found),
            len(found),
        )
    assert min(total.values()) > 400
    assert sum(right.values()) / sum(total.values()) >= 0.99
    for code in ("tr", "az"):
        assert right[code] / total[code] >= 0.99


def test_a_page_of_its_language_stays_and_another_is_dropped_with_what_was_found():
    assert keep_language(page(*TURKISH), CONFIG) == page(*TURKISH)
    assert dropped(keep_language(page(ENGLISH), CONFIG)).startswith("en ")
    assert dropped(keep_language(page(AZERBAIJANI), CONFIG)).startswith("az ")
    assert dropped(keep_language(page("12345 --- 67"), CONFIG)) == "no letters to judge by"


def test_a_page_that_is_hardly_of_its_language_is_dropped_for_its_confidence():
    strict = CONFIG.changed(min_confidence=0.999)
    assert dropped(keep_language(page("Ankara, İzmir, Bursa"), strict)).endswith("< 0.999")


def test_a_line_of_another_language_is_cut_and_a_turkish_line_without_stop_words_is_not():
    plain = "Ankara Üniversitesi Tıp Fakültesi Çocuk Sağlığı Hastalıkları Bölümü başkanlığı"
    result = keep_language(page(TURKISH[0], ENGLISH, TURKISH[1], plain, TURKISH[2]), CONFIG)
    assert isinstance(result, Page)
    assert result.text == "\n".join([TURKISH[0], TURKISH[1], plain, TURKISH[2]])
    assert [cut.reason for cut in result.cuts] == ["line in another language: en"]
    kept = keep_language(page(*TURKISH, ENGLISH), CONFIG.changed(lines=False))
    assert isinstance(kept, Page)
    assert ENGLISH in kept.text


def test_at_most_a_kilobyte_is_looked_at_from_all_parts_of_a_document():
    text = " ".join(f"bir{number}" for number in range(10_000))
    taken = sample(text)
    assert len(taken) <= SAMPLE
    numbers = [int(word.removeprefix("bir")) for word in taken.split()]
    assert numbers[0] < 10 and numbers[-1] > 9_980 and any(4_500 < number < 5_500 for number in numbers)
    assert sample("kısa") == "kısa"


def test_candidates_that_cannot_be_told_apart_are_an_error():
    with pytest.raises(ConfigError, match="xx"):
        identify("metin", ("tr", "xx"))
    with pytest.raises(ConfigError, match="two candidates"):
        identify("metin", ("tr",))
