"""Markup, lines and personal data: what goes, what stays, one small page for each."""

from __future__ import annotations

import pytest
from waiting import little_work

from mm_rec.cleaning.document import CleaningDocument
from mm_rec.cleaning.lines import LineConfig, cut_lines, phrases_for
from mm_rec.cleaning.markup import strip_markup
from mm_rec.cleaning.pii import is_card, is_iban, is_turkish_identity, mask_pii
from mm_rec.text.languages import get_language

TURKISH = get_language("tr")


def page(text: str) -> CleaningDocument:
    return CleaningDocument(text, TURKISH)


def stripped(text: str) -> str:
    return strip_markup(page(text)).text.strip()


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("---\ntitle: Başlık\nms.date: 1\n---\nMetin.", "Metin."),
        ('# Başlık\n\n## <a name="x"></a>Alt başlık ##', "Başlık\n\nAlt başlık ##"),
        ("Bkz. [bu sayfa](https://a.b/c_(d)) ve ![resim](x.png).", "Bkz. bu sayfa ve ."),
        ("[!include [banner](../x.md)]\nMetin.", "Metin."),
        ("> [!NOTE]\n> Dikkat edin.", "Dikkat edin."),
        (
            "**Kalın**, *eğik*, __altı__ ve `kod`; 2 * 3 * 4, ad_soyad_2.",
            "Kalın, eğik, altı ve kod; 2 * 3 * 4, ad_soyad_2.",
        ),
        (
            "Bu **uzun\nvurgu** ve [iki\nsatır](https://a.b) düz\n\n2 * 3\n\n* 4",
            "Bu uzun\nvurgu ve iki\nsatır düz\n\n2 * 3\n\n* 4",
        ),
        ("| Ad | Yaş |\n|----|:---:|\n| Ali | 5 |", "Ad, Yaş\n\nAli, 5"),
        ("Önce.\n```python\nx = {1: 2}\n```\nSonra.", "Önce.\n\n\nSonra."),
        (
            "<p>Bir&nbsp;paragraf &amp; iki</p><script>var x = 1;</script><div>Üç</div>",
            "Bir\xa0paragraf & iki\n\n\nÜç",
        ),
        ("<nav><a href='/'>Ana sayfa</a></nav>Yazı<!-- not -->sı", "Yazısı"),
        ("a < b ve c > d; 3<5", "a < b ve c > d; 3<5"),
        ("Kaçış: \\*yıldız\\*", "Kaçış: *yıldız*"),
        ("Düz bir cümle.", "Düz bir cümle."),
    ],
)
def test_markup_gives_way_to_its_text(markup, text):
    assert stripped(markup) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>Bir&nbsp;paragraf &amp; &#305;şık<p>İki", "Bir paragraf & ışık\n\nİki"),
        ('<p>Bir <a title="a > b" href=x>bağ</a> var.</p>', "Bir bağ var."),
        ("<p>2 < 3 ve # 4,\nbir * iki *\n- üç</p>", "2 < 3 ve # 4, bir * iki * - üç"),
        (
            "<ul><li>Bir<li>İki</ul><table><tr><th>Ad<th>Yaş<tr><td>Ali<td>5</table>",
            "Bir\nİki\nAd Yaş\nAli 5",
        ),
        ("<form action=x><p>Sayfanın metni.<input value=1></form>", "Sayfanın metni."),
        ("<nav>Ana sayfa</nav><p>Metin.<script>if (a<b) x('<p>y</p>')</script>", "Metin."),
        ("<nav>Kapanmadı<p>Metin.", "Kapanmadı\n\nMetin."),
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        "<!DOCTYPE html>\n<html><head><title>T</title></head><body>",
        "\n<?xml version='1.0'?><!-- x -->\n<HTML>",
    ],
)
def test_a_web_page_is_read_as_a_browser_reads_it(before, body, text):
    assert stripped(before + body) == text


def test_text_about_a_web_page_is_no_web_page():
    assert (
        stripped("Bir sayfa\n<html> ile başlar; 3 <5.\n* Madde") == "Bir sayfa\n\n ile başlar; 3 <5.\n* Madde"
    )


def test_what_is_cut_from_a_web_page_is_kept():
    cuts = strip_markup(page("<html><head><title>T</title></head><p>x</p><footer>y</footer>")).cuts
    assert [cut.text for cut in cuts] == ["<head><title>T</title></head>", "<footer>y</footer>"]


def test_what_is_cut_is_kept_with_its_reason():
    cuts = strip_markup(page("---\na: 1\n---\nx\n```\ncode\n```\n<style>b</style>")).cuts
    assert [cut.reason for cut in cuts] == ["front matter", "code block", "HTML without prose"]
    assert "code" in cuts[1].text


@pytest.mark.parametrize(
    "hostile",
    [
        "<nav>" * 50_000,
        "<!--" * 50_000,
        "<!---->" * 50_000,
        "[a" * 100_000,
        "**" * 100_000,
        "|-" * 100_000,
        "# " + " " * 200_000,
    ],
)
def test_broken_markup_is_read_in_linear_time(hostile):
    with little_work():  # a second form of any pattern here would take minutes
        strip_markup(page(hostile + " son"))


@pytest.mark.parametrize(
    "hostile", ["<nav>" * 50_000, "<div>" * 50_000, "<table><td>" * 20_000, "<div><b><a>" * 10_000]
)
def test_a_broken_web_page_is_read_soon(hostile):
    with little_work():
        assert stripped(f"<html>{hostile}son") == "son"


def cut(text: str, **settings: object) -> tuple[str, list[str]]:
    result = cut_lines(page(text), LineConfig(**settings), phrases_for("tr"))
    return result.text, [piece.reason for piece in result.cuts]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Ana Sayfa > Haberler > Spor", "menu"),
        ("Paylaş | Yazdır | E-posta", "menu"),
        ("DEVAMINI OKU »", "menu"),
        ("https://example.com/a/b?c=d", "menu"),
        ("Bu site çerezleri kullanır. Gizlilik politikası için tıklayın.", "notice"),
        ("© 2020 Örnek A.Ş. TÜM HAKLARI SAKLIDIR", "notice"),
        ("Please enable JavaScript to view comments.", "notice"),
        ("Sayfayı görmek için JavaScript'i etkinleştirin.", "notice"),
        ("x" * 1001, "line with an endless word"),
    ],
)
def test_a_line_of_the_frame_is_cut(line, reason):
    assert cut(f"Bir cümle.\n{line}\nBir cümle daha.") == ("Bir cümle.\nBir cümle daha.", [reason])


@pytest.mark.parametrize(
    "line",
    [
        "Ara sıra hakkında konuşurduk.",
        "Haberler geldi.",
        "Ne kadar direnseler de AJAX'ın göbeğinde de JavaScript",
        "Menü masadaydı; giriş kapısı kapalıydı.",
        "Evet.",
        "https://example.com adresindeki yazıyı okudum.",
        "Çerezler hakkında uzun bir paragraf: gizlilik politikası " + "ve başka konular " * 20,
    ],
)
def test_prose_stays(line):
    text = f"Bir cümle.\n{line}\nBir cümle daha."
    assert cut(text) == (text, [])


def test_a_long_line_that_stood_earlier_is_cut_and_a_short_one_is_not():
    text, reasons = cut("Bu satır iki kez yazıldı.\nEvet.\nBu satır iki kez yazıldı.\nEvet.")
    assert text == "Bu satır iki kez yazıldı.\nEvet.\nEvet."
    assert reasons == ["line stood earlier on the page"]


def test_c4s_line_rules_are_there_on_request():
    text, reasons = cut(
        "Başlık\nİki sözcük.\nBu bir cümledir.\nYarım kaldı...", terminal_punctuation=True, min_words=3
    )
    assert text == "Bu bir cümledir."
    assert reasons == ["line of few words", "line of few words", "line of few words"]
    assert cut("JavaScript bir dildir.", javascript=True)[1] == ["line about JavaScript"]
    assert cut("Bu bir başlık\nBu bir cümledir.", terminal_punctuation=True)[1] == [
        "line without final punctuation"
    ]


# Made for this test: check digits are right, the people, accounts and cards are not real.
IDENTITY, IBAN, CARD = "10000000146", "TR330006100519786457841326", "4111 1111 1111 1111"


@pytest.mark.parametrize(
    ("found", "label"),
    [
        ("ali.veli+x@ornek.com.tr", "[EMAIL]"),
        (IDENTITY, "[ID]"),
        (IBAN, "[IBAN]"),
        ("TR33 0006 1005 1978 6457 8413 26", "[IBAN]"),
        (CARD, "[CARD]"),
        ("0532 123 45 67", "[PHONE]"),
        ("0(212) 123 45 67", "[PHONE]"),
        ("+90 532 123 45 67", "[PHONE]"),
        ("532 123 45 67", "[PHONE]"),
        ("+49 30 1234567", "[PHONE]"),
        ("185.2.8.41", "[IP]"),
        ("3782 822463 10005", "[CARD]"),
        ("0312.123.45.67", "[PHONE]"),
        ("00905321234567", "[PHONE]"),
    ],
)
def test_personal_data_is_masked(found, label):
    masked = mask_pii(page(f"Bana yazın: {found} (gece de olur)."))
    assert masked.text == f"Bana yazın: {label} (gece de olur)."
    assert [piece.text for piece in masked.cuts] == [found]


AROUND = [
    "({})",
    "[{}]",
    "Tel.{}",
    "Tel:{}",
    "no-{}",
    "-{}-",
    "“{}”",
    "'{}'",
    "/{}/",
    "*{}*",
    "_{}_",
    "{},",
    "{};",
    "{}.",
    "{}'dir",
]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    ("found", "label"),
    [
        (IDENTITY, "[ID]"),
        (IBAN, "[IBAN]"),
        (IBAN.lower(), "[IBAN]"),
        ("TR33-0006-1005-1978-6457-8413-26", "[IBAN]"),
        ("BE68 5390 0754 7034", "[IBAN]"),
        ("GB29 NWBK 6016 1331 9268 19", "[IBAN]"),
        ("MT84MALT011000012345MTLCAST001S", "[IBAN]"),
        (CARD, "[CARD]"),
        (CARD.replace(" ", "-"), "[CARD]"),
        ("(0212) 555 12 34", "[PHONE]"),
        ("+90 (0212) 555 12 34", "[PHONE]"),
        ("(212) 555 12 34", "[PHONE]"),
        ("0212 555 12 34", "[PHONE]"),
        ("0212/555 12 34", "[PHONE]"),
        ("0212 555 12 34-35", "[PHONE]"),
        ("(532) 123 45 67", "[PHONE]"),
        ("+49 30 1234567", "[PHONE]"),
        ("185.2.8.41", "[IP]"),
    ],
)
def test_personal_data_is_masked_whatever_mark_stands_around_it(found, label, around):
    masked = mask_pii(page(f"Bilgi için {around.format(found)} yazılıdır."))
    assert masked.text == f"Bilgi için {around.format(label)} yazılıdır."
    assert [piece.text for piece in masked.cuts] == [found]


@pytest.mark.parametrize("word", ["KBC bankasında", "ABCD", "2024 yılında", "TR", f"ve {IBAN}"])
def test_an_account_number_ends_where_its_country_says(word):
    for number in ("BE68 5390 0754 7034", IBAN, "TR33 0006 1005 1978 6457 8413 26"):
        masked = mask_pii(page(f"Hesap {number} {word}."))
        assert masked.text == f"Hesap [IBAN] {word.replace(IBAN, '[IBAN]')}."


@pytest.mark.parametrize(
    "text",
    [
        "(12.05.2023-14.06.2023) ile 2019-2020-2021-2022 arasında",
        "(30.12.2004) v1.10.185.2024 (sürüm.10.0.19041.1288) 1.185.2.8.41",
        "12:30:45.123456789 ve (1.250.000.000,50) ile -1.000.000.000",
        "BE68 5390 0754 7035 ve tr340006100519786457841326 yanlıştır.",
        "TR330006100519786457841326789 uzundur; XX330006100519786457841326 yoktur.",
        "de12 adet ürünün satışı bu yıl oldu",
        "(0) 212 ve (212) 5551234; madde 10000000146/2 ile 3.10000000146",
        "10.1000/xyz.0212-5551234567890",
        "10000000147 bir kimlik numarası değildir.",
        "TR340006100519786457841326 yanlış bir numaradır.",
        "4111 1111 1111 1112 de öyle.",
        "1.250.000,50 TL ödendi; 2019/2020 yılı, 26/9/2004 tarihli 5237 sayılı Kanun.",
        "Sürüm 7.0.1265.23014, adres 192.168.1.1, saat 10:30-12:45.",
        "ISBN 978-3-16-148410-0 ve 5551234567 numaralı sipariş.",
        "12345678901234567890123 uzun bir sayı.",
        "(Değişik: 30/12/2004-5281/19 md.) Madde 50 30/12/2004 tarihinde, 4 /12/1985-3239/97 sayılı.",
        "a) 10.000.000 (35.425.000) Türk lirası, 6) 10.000.000 (35.425.000 eski)",
        "Sürüm 1.0.0.0 ve 7.5.4.3 yayımlandı; 8.8.8.8 da bir sürüme benzer.",
    ],
)
def test_other_numbers_stay(text):
    assert mask_pii(page(text)).text == text


def test_check_digits_find_every_single_wrong_digit():
    for check, digits in ((is_turkish_identity, IDENTITY), (is_iban, IBAN), (is_card, CARD.replace(" ", ""))):
        assert check(digits)
        for place, digit in enumerate(digits):
            if digit.isdigit():
                wrong = digits[:place] + str((int(digit) + 1) % 10) + digits[place + 1 :]
                assert not check(wrong), (check.__name__, place)
