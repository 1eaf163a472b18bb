"""Turkish for the story generator: everything in it was written for this project."""

from mm_rec.stories.patterns import SmallTalk, StoryLanguage, Tale
from mm_rec.stories.turkish_plots import PLOTS
from mm_rec.stories.turkish_questions import FACT_GROUPS, FAMILIES
from mm_rec.stories.turkish_words import POOLS


def capitalise(sentence: str) -> str:
    """Return `sentence` with its first letter in upper case the Turkish way (i becomes İ, ı becomes I)."""
    first = sentence[:1]
    return ("İ" if first == "i" else first.upper()) + sentence[1:]


_TALES = (
    Tale(
        {"animal": "animal", "place": "outdoor", "thing": "thing", "colour": "colour"},
        (
            "Bana bir {animal} masalı anlat.",
            "Bir {animal} masalı anlatır mısın?",
            "Bir {animal} hakkında masal istiyorum.",
        ),
        (
            "Bir gün küçük bir {animal} {place.loc} {colour} bir {thing} buldu ve çok mutlu oldu.",
            "Bir zamanlar küçük bir {animal} {place.dat} gitti ve {colour} bir {thing} ile oynadı.",
        ),
    ),
    Tale(
        {"hero": "child", "treat": "treat", "place": "outdoor", "friend": "child"},
        (
            "Bana {hero} hakkında bir masal anlat.",
            "{hero} hakkında bir masal anlatır mısın?",
            "{hero} hakkında bir masal istiyorum.",
        ),
        (
            "Bir gün {hero} {place.dat} gitti ve {treat.own_acc} {friend} ile paylaştı.",
            "{hero} çok üzgündü ama {friend} {place.dat} gelince birlikte oynadılar.",
        ),
    ),
)

_SMALL_TALK = SmallTalk(
    greetings=(
        ("Merhaba!", "Merhaba! Sana nasıl yardım edebilirim?"),
        ("Selam!", "Selam! Senin için ne yapabilirim?"),
        ("Günaydın!", "Günaydın! Bugün sana nasıl yardım edebilirim?"),
        ("İyi akşamlar!", "İyi akşamlar! Senin için ne yapabilirim?"),
        ("Nasılsın?", "İyiyim, teşekkür ederim. Sana nasıl yardım edebilirim?"),
        ("Sen kimsin?", "Ben küçük bir dil modeliyim. Masal anlatır, soruları yanıtlarım."),
    ),
    thanks=(
        ("Teşekkür ederim!", "Rica ederim!"),
        ("Çok teşekkür ederim!", "Rica ederim! Yine beklerim."),
        ("Yardımın için sağ ol.", "Sana yardım etmek beni mutlu eder."),
        ("Hoşça kal!", "Hoşça kal! Görüşmek üzere."),
        ("İyi geceler!", "İyi geceler! Tatlı rüyalar."),
    ),
    systems=(
        "Sen iyi kalpli bir yardımcısın.",
        "Sen çocukların yardımcısısın.",
        "Kısa ve açık yanıtlar ver.",
    ),
)

TURKISH = StoryLanguage(
    code="tr",
    passage_label="Metin:",
    question_label="Soru:",
    answer_label="Cevap:",
    listen="Dinle:",
    agreement="Tabii,",
    repeat=("Metin ne diyor?", "Bunu tekrar söyler misin?"),
    capitalise=capitalise,
    pools=POOLS,
    plots=PLOTS,
    families=FAMILIES,
    fact_groups=FACT_GROUPS,
    tales=_TALES,
    small_talk=_SMALL_TALK,
)
