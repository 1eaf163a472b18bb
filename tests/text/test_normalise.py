"""Normal form: the same for the same text, nothing visible lost; repaired letters; keys of duplicates."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from mm_rec.errors import MissingExtraError
from mm_rec.text.normalise import dedup_key, normalise, repair_dotted_i, repair_mojibake

TURKISH = (
    "Işıklar söndüğünde şehrin öğretmenleri İzmir’e doğru yola çıkmıştı; “bir ağaç – bir çınar” dediler."
)


def misread(text, encoding, by):
    """The text written in one encoding and read in another."""
    return text.encode(encoding).decode(by)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        pytest.param("bir\r\niki\rüç\vdört\u2028beş", "bir\niki\nüç\ndört\nbeş", id="line ends"),
        pytest.param(unicodedata.normalize("NFD", "İğne çöp"), "İğne çöp", id="composed"),
        pytest.param("ke\u00adli\u200bme \ufeffson\x00\x07", "kelime son", id="invisible characters"),
        pytest.param("o\u200b\u0308n", "ön", id="composed after something invisible is gone"),
        pytest.param("keli\u00ad \r\n  me", "kelime", id="a soft hyphen at a line end"),
        pytest.param("5\u00a0%\u2009\u202f\u3000x", "5 %   x", id="spaces"),
        pytest.param(
            "İzmir’de 1915´te Ankara`nın doesnʼt", "İzmir'de 1915'te Ankara'nın doesn't", id="apostrophes"
        ),
        pytest.param("‘ev’ “su” `kod`a – x’ — …", "‘ev’ “su” `kod`a – x’ — …", id="quotes and dashes stay"),
        pytest.param("a \t\nb  \n\n \n\n\nc \n", "a\nb\n\nc", id="spaces at line ends and blank lines"),
        pytest.param("\n \n  a\n", "  a", id="an indented first line"),
        pytest.param("👩\u200d👧 a\u200db", "👩\u200d👧 ab", id="joiners stay in emoji only"),
        pytest.param("x\ud83dy", "xy", id="half a surrogate pair"),
        pytest.param("a\tb   c", "a\tb   c", id="tabs and spaces inside a line stay"),
    ],
)
def test_normal_form(text, normal):
    assert normalise(text) == normal


def test_what_is_normal_stays_the_same():
    text = TURKISH.replace("’", "'") + "\n\n\tkod = {1}\n\n- kâr, ön, naïve, Straße, 北京, مرحبا 😀"
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("text", "mended", "count"),
    [
        ("i\u0307stanbul'da i\u0307yi gi\u0307tti\u0307", "istanbul'da iyi gitti", 4),
        ("İ\u0307zmir ı\u0307zmir", "İzmir izmir", 2),
        ("hi\u0307\u0302", "hî", 1),
        ("İstanbul ıssız", "İstanbul ıssız", 0),
        ("x\u0307 n\u0307", "ẋ ṅ", 0),
    ],
)
def test_the_second_dot_that_wrong_small_letters_leave_is_taken_off(text, mended, count):
    assert repair_dotted_i(normalise(text)) == (mended, count)


def test_small_letters_made_without_a_language_are_mended_to_those_of_turkish():
    wrong = "İstanbul'da İki İYİ gün".lower()
    assert repair_dotted_i(normalise(wrong))[0] == "istanbul'da iki iyi gün"


def test_normalising_twice_is_normalising_once():
    pieces = [
        *"aıİşðýþÝÃÄÅâ¼±€™Ÿ’`´ \t\n\r\v\u00a0\u00ad\u0085\u009f\u0307\u0308\u200b\u200d\u2000\u1fef\ufeff\ud800👩",
        "\r\n", "Ã¼", "Ä±", "ÅŸ", "â€™", "baþka", "sayýlarý", " bir ", "'ný", "çok ", "é", "ð\u0178\u02dc\u20ac",
    ]  # fmt: skip
    chance = random.Random(11)
    for _ in range(5000):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 16)))
        once = normalise(text)
        assert normalise(once) == once, ascii(text)


@pytest.mark.parametrize(
    "piece", [" ", "\t", " \n", "\u00ad ", "`", "a`", "’", "\u200d", "ý", "ýn", "\x85", "â"]
)
def test_time_grows_with_the_length_alone(piece):
    """With the square of it, a case would take an hour."""
    text = piece * 300_000 + "x"
    assert normalise(text).endswith("x") and dedup_key(text, "tr").endswith("x")


def test_text_of_every_character_there_is_has_a_normal_form_and_a_key():
    text = "".join(map(chr, range(0x10000)))
    normal, key = normalise(text), dedup_key(text)
    assert normalise(normal) == normal and not set("\r\x00\xa0\xad\ufeff\udfff") & set(normal)
    assert dedup_key(key) == key and not set("-.'\u200b\n") & set(key)


@pytest.mark.parametrize("encoding", ["cp1252", "cp1254", "latin-1"])
def test_turkish_utf8_read_as_an_eight_bit_code_is_repaired(encoding):
    text = "Türkçe öğretmeni şarkıcı ile çalışıyor: İstanbul'un ağaçları"
    # What the code pages leave undefined is read as the control character of that number.
    damaged = "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())
    assert damaged != text
    assert repair_mojibake(f"Başlık\n{damaged}\nson") == f"Başlık\n{text}\nson"


def test_a_misread_letter_beside_others_read_rightly_is_repaired():
    assert repair_mojibake("ülke sevdasÄ±yla eÄŸitime") == "ülke sevdasıyla eğitime"


def test_windows_characters_read_as_latin_1_become_what_they_were():
    assert repair_mojibake("l\x92homme \x93oui\x94\x85 \x81") == "l’homme “oui”… "


@pytest.mark.parametrize("by", ["cp1252", "latin-1"])
def test_turkish_windows_1254_read_as_western_is_repaired(by):
    for text in (
        "şeref duygusuyla kutlandı, yıldönümü coşkuyla geçti",
        "İSTANBUL VE ÇANAKKALE'DE ÖĞRETİM BAŞLADI",
        "Bu doğrultuda yapılan çalışmalar sürüyor.",
    ):
        assert repair_mojibake(misread(text, "cp1254", by)) == text


@pytest.mark.parametrize(
    "line",
    [
        "Það er þýðing að maðurinn sé ekki hér",
        "Hann talaði við borgina og fór norður",
        "sambandslýðveldi",
        "um 842 (u.þ.b. 900) – Fornfranska, miðaldir",
        "Føroyar eru eitt land við Norðuratlantshav, býir og bygdir",
        "Nový starý malý vlastný zvaný",
        "Chyba analýzy: slovenský",
        "Bu ýyl Türkmenistanda üç bilim boldy, garaýarlar",
        "Tất cả ý kiến của bạn",
        "İzlanda'nın Þingvellir adlı millî parkı çok güzel bir yer",
        "þ ð ý Þ Ð Ý",
    ],
)
def test_languages_that_have_these_letters_keep_them(line):
    assert repair_mojibake(line) == line


def test_only_the_damaged_lines_of_a_text_change():
    text = "slovenský jazyk\nçok güzel bir akþam yaþandý\nPříliš žluťoučký kůň"
    assert repair_mojibake(text).split("\n") == [
        "slovenský jazyk",
        "çok güzel bir akşam yaşandı",
        "Příliš žluťoučký kůň",
    ]


def test_without_ftfy_the_missing_extra_is_named_and_other_text_needs_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert repair_mojibake("yaþandý, baþka") == "yaşandı, başka"
    with pytest.raises(MissingExtraError, match=r"mm-rec\[data\]"):
        repair_mojibake("TÃ¼rkÃ§e")


@pytest.mark.parametrize("language", ["az", "de", "en", "es", "fr", "it", "nl"])
def test_no_line_of_another_language_is_taken_for_damaged_turkish(language, real_data):
    text = real_data(f"lid/lingua_sentences_{language}.txt").read_text(encoding="utf-8")
    repaired = repair_mojibake(text)
    for letter in "ışğİŞĞ":
        assert repaired.count(letter) == text.count(letter)


def test_real_damaged_turkish_is_repaired(real_data):
    lines = real_data("lid/lingua_sentences_tr.txt").read_text(encoding="utf-8").split("\n")
    damaged = [line for line in lines if set("ýþðÝÞÐ") & set(line)]
    repaired = [line for line in damaged if not set("ýþðÝÞÐ") & set(repair_mojibake(line))]
    assert len(damaged) == 244 and len(repaired) >= 238


def test_real_turkish_that_was_read_rightly_is_not_changed(real_data):
    for name in ("tr/zemberek_sentence_boundary_train.txt", "tr/wiki_ner_sentences.txt", "tr/nutuk_vol1.txt"):
        text = real_data(name).read_text(encoding="utf-8")
        assert repair_mojibake(text) == text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("left", "right"),
    [("IŞIK", "ışık"), ("İSTANBUL", "istanbul"), ("Iğdır", "IĞDIR"), ("İYİ, GÜN!", "iyi gün")],
)
def test_turkish_case_does_not_matter_to_the_key(left, right, form):
    assert dedup_key(unicodedata.normalize(form, left), "tr") == dedup_key(right, "tr")


@pytest.mark.parametrize(
    ("left", "right"), [("kâr", "kar"), ("ön", "on"), ("sıra", "sira"), ("13", "31"), ("ş", "s")]
)
def test_marks_and_digits_matter_to_the_key(left, right):
    assert dedup_key(left, "tr") != dedup_key(right, "tr")


def test_the_key_keeps_words_and_numbers_only():
    assert dedup_key(" “Ev” —\n3,5 kg…  e-posta_X!", "tr") == "ev 3 5 kg e posta x"
    assert (
        dedup_key("İzmir'de", "tr") == dedup_key("İzmir’de", "tr") == dedup_key("ke\u00adİzmirde"[3:], "tr")
    )
    assert dedup_key("\u200b—!", "tr") == ""


def test_the_key_of_text_in_an_unknown_language():
    assert dedup_key("TITLE İnce") == "title ince" and dedup_key("TITLE", "en") == "title"
    assert dedup_key("TITLE", "tr") == "tıtle"


def test_a_key_is_its_own_key_and_that_of_the_normalised_text():
    chance = random.Random(5)
    letters = [*"aIıİişŞ'’.,- \n\u00a0_3", "J\u030c", "ö", "o\u0308", "â", "\u00ad\u200b"]
    for _ in range(1000):
        text = "".join(chance.choices(letters, k=12))
        for language in ("tr", None):
            key = dedup_key(text, language)
            assert dedup_key(key, language) == key
            assert dedup_key(normalise(text), language) == key
