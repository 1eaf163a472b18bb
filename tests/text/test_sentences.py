"""Sentence splitting: what ends a sentence and what does not, nothing lost, and the agreement with real text."""

from __future__ import annotations

import random
import re

import pytest

from mm_rec.errors import ConfigError
from mm_rec.text.sentences import count_sentences, split_sentences

_ENDING_MARK = re.compile(r"[.!?…][\"'”’»)\]]*$")

# The sentences of a case, joined by spaces, are to be found again.
TURKISH = {
    "marks": ["Dün geldi.", "Bugün gitti!", "Yarın döner mi?", "Belki…", "Kim bilir?!"],
    "titles": ["Prof. Dr. Ayşe Yılmaz geldi.", "Av. Can Öz onu Doç. Dr. Işıl Er ile tanıştırdı."],
    "titles in capitals": ["PROF. DR. IŞIK İLE YRD. DOÇ. İNCİ GELDİ.", "SONRA GİTTİ."],
    "initials": ["M. Kemal ile Ş. Y. konuştu.", "A.B.D. Başkanı ve T.C. Cumhurbaşkanı oradaydı.", "M.Ö. Roma neydi?"],
    "ordinals": ["19. yüzyılda yazıldı.", "Bu 3. madde gibidir.", "2. Dünya Savaşı.", "XIX. Yüzyıl ve II. Murat."],
    "a year is no ordinal": ["Yıl 1923.", "Cumhuriyet ilan edildi."],
    "numbers": ["1.250,50 lira, oran %3.5 oldu.", "Saat 20.30'da, 29.10.2023 günü başladı.", "12. 5. 2010 gibi."],
    "abbreviation that may close": ["Elma, armut vb. meyveler var.", "Elma, armut vb.", "Bunlar meyvedir."],
    "references": ["Bkz. s. 12 ve krş. No. 5 gibi.", "Örn. Prof. olan kim?", "Gazi Cad. Çankaya Mah. neresi?"],
    "addresses": ["www.ornek.com.tr ve a.b@ornek.com yazın.", "Dosya rapor.txt olsun."],
    "quotes": ["“Gel!” dedi.", "“Gelmem.”", "Sonra gitti.", '"Nereye?" diye sordu.', "(Kimse duymadı.)", "Sustu."],
    "ellipsis": ["Bekledi... ama gelmedi… belki de geldi...", "Gelmedi."],
    "dotted capitals": ["Orada kaldı.", "İstanbul'a döndü.", "Işık söndü."],
}  # fmt: skip
ENGLISH = {
    "titles": ["Mr. Smith met Mrs. Jones.", "Dr. Who and Prof. X left."],
    "initials": ["J. R. R. Tolkien wrote it.", "The U.S. Army and the U.N. agreed."],
    "i is a word": ["So do I.", "You know it."],
    "examples": ["Fruit, e.g. apples, i.e. food, is good.", "It works."],
    "abbreviation that may close": [
        "Apples, pears, etc. are fruit.",
        "Apples, pears, etc.",
        "They are fruit.",
    ],
    "companies": ["Acme Inc. was sold.", "It was Acme Inc.", "Nobody cared."],
    "no": ["See No. 5 for more.", "No.", "He said no.", "I left."],
    "decimals": ["It costs 3.50 dollars.", "It is 5.", "He is 6.5 feet tall."],
    "a number is no ordinal": ["He was 3.", "She was 4."],
    "quotes": ["“Come!” he said.", '"I will not."', "He left.", "(Nobody heard.)", "Silence."],
    "ellipsis": ["He waited... but nobody came...", "Nobody."],
    "times": ["It began at 5 p.m. on Monday.", "It ended at 6 p.m.", "They left."],
    "months": ["On Jan. 5 we met.", "St. Paul is vs. Mt. Everest."],
}


@pytest.mark.parametrize(
    ("language", "sentences"),
    [pytest.param("tr", case, id=f"tr {name}") for name, case in TURKISH.items()]
    + [pytest.param("en", case, id=f"en {name}") for name, case in ENGLISH.items()],
)
def test_joined_sentences_are_found_again(language, sentences):
    assert split_sentences(" ".join(sentences), language) == sentences
    assert count_sentences(" ".join(sentences), language) == len(sentences)


def test_a_number_with_a_dot_is_an_ordinal_in_turkish_only():
    assert count_sentences("O 3. Sınıfta.", "tr") == 1
    assert count_sentences("It was 3. Then it was 4.", "en") == 2


def test_the_number_of_a_list_item_belongs_to_the_item():
    assert split_sentences("1. Mix it.\n2. Bake it.", "en") == ["1. Mix it.", "2. Bake it."]


def test_a_line_end_is_white_space_and_a_blank_line_an_end():
    assert split_sentences("Uzun bir\ncümle. Kısa\n\nBaşlık\n \nSon", "tr") == [
        "Uzun bir\ncümle.",
        "Kısa",
        "Başlık",
        "Son",
    ]


def test_a_mark_at_a_line_end_ends_the_sentence_before_a_small_letter_too():
    assert split_sentences("bitti.\nsonra başladı", "tr") == ["bitti.", "sonra başladı"]
    assert split_sentences("bitti. sonra başladı", "tr") == ["bitti. sonra başladı"]
    assert split_sentences("Sayın Prof.\nAyşe", "tr") == ["Sayın Prof.\nAyşe"]


@pytest.mark.parametrize("text", ["", " \n\n\t\n "])
def test_blank_text_has_no_sentences(text):
    assert split_sentences(text) == [] and count_sentences(text) == 0


@pytest.mark.parametrize("language", ["tr", "en"])
def test_no_character_is_lost_or_moved_and_the_count_agrees(language):
    pieces = [
        *'.!?…"”) \n',
        "\n\n",
        "...",
        "vb.",
        "Dr.",
        "19.",
        "İ.",
        "ışık",
        "Ev",
        "no.",
        "1.",
        "I.",
        "«",
        "\u2003",
    ]
    chance = random.Random(7)
    for _ in range(2000):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 25)))
        sentences = split_sentences(text, language)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(sentence and sentence == sentence.strip() for sentence in sentences)
        assert count_sentences(text, language) == len(sentences)


@pytest.mark.parametrize("piece", [".", "!?", '."', " ", "\n", "\n ", "( ", "1.", "x", "A."])
def test_time_grows_with_the_length_alone(piece):
    """With the square of it, a case would take an hour."""
    text = piece * 300_000 + "a"
    assert count_sentences(text, "tr") == len(split_sentences(text, "tr"))


def test_an_unknown_language_is_an_error():
    with pytest.raises(ConfigError, match="'xx' is not known"):
        count_sentences("Bir.", "xx")


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("tr/zemberek_sentence_boundary_train.txt", 0.985),
        ("tr/ud_boun.txt", 0.97),
        ("tr/ud_gb.txt", 0.99),
        ("tr/ud_kenet.txt", 0.99),
        ("tr/ud_penn.txt", 0.985),
        ("tr/ud_framenet.txt", 0.99),
        ("tr/ud_tourism.txt", 0.99),
    ],
)
def test_sentences_of_real_turkish_are_found_again(name, floor, real_data):
    """F1 of the ends of sentences, over the lines that end with a mark, joined by spaces."""
    lines = [line.strip() for line in real_data(name).read_text(encoding="utf-8-sig").split("\n")]
    sentences = [line for line in lines if _ENDING_MARK.search(line)]
    expected, found = _ends(sentences), _ends(split_sentences(" ".join(sentences), "tr"))
    right = len(expected & found)
    assert 2 * right / (len(expected) + len(found)) >= floor


def _ends(sentences):
    """After how many characters, white space left out, each sentence ends."""
    ends, place = set(), 0
    for sentence in sentences:
        place += len("".join(sentence.split()))
        ends.add(place)
    return ends
