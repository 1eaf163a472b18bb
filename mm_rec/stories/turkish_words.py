"""Turkish words of the story generator with their inflected forms.

The forms come from `noun` and `name`, which know vowel harmony, buffer letters, hard consonants and the
apostrophe of names; a stem that softens is written beside its word ("kitap/kitab").
"""

from mm_rec.stories.patterns import Pools, Word

_HIGH = {"a": "ı", "ı": "ı", "e": "i", "i": "i", "o": "u", "u": "u", "ö": "ü", "ü": "ü"}
_LOW = {"a": "a", "ı": "a", "o": "a", "u": "a", "e": "e", "i": "e", "ö": "e", "ü": "e"}
_HARD = "fstkçşhp"


def _last_vowel(word: str) -> str:
    lowered = word.replace("İ", "i").replace("I", "ı").lower()
    return next(letter for letter in reversed(lowered) if letter in _HIGH)


def noun(plain: str, softened: str = "") -> Word:
    """Return a common noun or adjective with its forms.

    Forms: acc, gen, dat, loc, abl; own, own_acc, own_gen, own_dat (with the possessive "his or her");
    too ("de" or "da", the separate particle); is_ (with the copula "-dir").
    `softened` is the stem before a vowel where the last consonant changes ("kitab" for "kitap").
    """
    high, low = _HIGH[_last_vowel(plain)], _LOW[_last_vowel(plain)]
    vowel_end = plain[-1] in _HIGH
    stem = softened or plain
    own = f"{stem}{'s' if vowel_end else ''}{high}"
    hard = "t" if plain[-1] in _HARD else "d"
    return Word(
        plain,
        acc=f"{stem}{'y' if vowel_end else ''}{high}",
        gen=f"{stem}{'n' if vowel_end else ''}{high}n",
        dat=f"{stem}{'y' if vowel_end else ''}{low}",
        loc=f"{plain}{hard}{low}",
        abl=f"{plain}{hard}{low}n",
        own=own,
        own_acc=f"{own}n{high}",
        own_gen=f"{own}n{high}n",
        own_dat=f"{own}n{low}",
        too=f"d{low}",
        is_=f"{plain}{hard}{high}r",
    )


def name(plain: str) -> Word:
    """Return a proper name with its forms behind an apostrophe (acc, gen, dat, loc, abl) and `too`."""
    common = noun(plain)
    cases = {
        case: f"{plain}'{common.form(case)[len(plain) :]}" for case in ("acc", "gen", "dat", "loc", "abl")
    }
    return Word(plain, too=common.form("too"), **cases)


def nouns(words: str) -> tuple[Word, ...]:
    """Return the nouns of a list like "top kitap/kitab", each with its softened stem where it has one."""
    return tuple(noun(*word.split("/")) for word in words.split())


def _names(words: str) -> tuple[Word, ...]:
    return tuple(name(word) for word in words.split())


def _spots(*phrases: str) -> tuple[Word, ...]:
    return tuple(Word(phrase, abl=f"{phrase}n") for phrase in phrases)


_OUTDOOR = nouns("park bahçe orman köy çayır sahil çiftlik/çiftliğ tepe ada meydan lunapark")

POOLS: Pools = {
    "child": _names(
        "Ayşe Elif Zeynep Defne Ece Ela Zehra Merve Selin Derya Irmak Nehir Melis İpek İrem Naz"
        " Ali Mehmet Ahmet Can Deniz Efe Emre Yusuf Ömer Umut Murat Burak Kerem Arda Mert Onur Barış Cem"
    ),
    "elder": nouns("anne baba nine dede teyze amca"),
    "relative": nouns("nine dede teyze amca"),
    "pet_name": _names("Pamuk Boncuk Fındık Tarçın Zeytin Maviş Minnoş Karamel"),
    "thing": nouns(
        "top kitap/kitab uçurtma kukla şapka çanta bardak/bardağ davul anahtar lamba zil kutu araba tekne"
        " tren robot sepet atkı kalem kaşık/kaşığ yüzük/yüzüğ düdük/düdüğ şemsiye battaniye flüt maske"
        " bayrak/bayrağ düğme balon kova defter eldiven"
    ),
    "light_thing": nouns("uçurtma şapka atkı bayrak/bayrağ maske top balon"),
    "toy": nouns("robot araba tekne tren davul flüt kukla uçurtma"),
    "winter_thing": nouns("atkı şapka"),
    "colour": nouns("kırmızı mavi yeşil sarı beyaz siyah kahverengi pembe mor turuncu"),
    "odd_colour": nouns("mavi mor pembe"),
    "place": (*_OUTDOOR, *nouns("çarşı kütüphane müze okul kale")),
    "outdoor": _OUTDOOR,
    "wild_place": nouns("orman çayır tepe ada çiftlik/çiftliğ"),
    "indoor_spot": _spots(
        "yatağın altında",
        "kapının arkasında",
        "masanın altında",
        "sandalyenin altında",
        "pencerenin yanında",
        "koltuğun arkasında",
        "dolabın içinde",
        "perdenin arkasında",
        "merdivenin altında",
        "halının altında",
    ),
    "outdoor_spot": _spots(
        "ağacın altında",
        "çalının arkasında",
        "otların arasında",
        "bankın altında",
        "taşın yanında",
        "çitin arkasında",
        "çiçeklerin arasında",
        "duvarın yanında",
    ),
    "animal": nouns(
        "kedi köpek/köpeğ tavşan kuş ördek/ördeğ at inek/ineğ koyun tilki ayı kurbağa fare baykuş fil keçi"
        " tavuk/tavuğ aslan kaplumbağa sincap/sincab maymun"
    ),
    "drawn_animal": nouns("kedi köpek/köpeğ tavşan at inek/ineğ tilki ayı fil aslan kaplumbağa"),
    "pet": nouns("kedi köpek/köpeğ tavşan kuş fare kaplumbağa ördek/ördeğ"),
    "cold_animal": nouns("kedi köpek/köpeğ tavşan kuş sincap/sincab"),
    "beast": nouns("tilki ayı tavşan fare sincap/sincab ördek/ördeğ"),
    "helper": nouns("baykuş at keçi inek/ineğ kaplumbağa fil"),
    "climber": nouns("sincap/sincab kedi maymun"),
    "food": nouns(
        "elma muz armut/armud portakal çilek/çileğ havuç/havuc yumurta kurabiye simit/simid ekmek/ekmeğ"
        " peynir pilav bal kek börek/böreğ"
    ),
    "treat": nouns("elma armut/armud portakal muz kurabiye simit/simid çilek/çileğ"),
    "dish": nouns("kek börek/böreğ çorba pizza salata"),
    "ingredient": nouns("süt un tuz yağ şeker"),
    "fruit": nouns(
        "elma armut/armud portakal muz kurabiye yumurta havuç/havuc limon düğme balon çiçek/çiçeğ kalem"
    ),
    "number": nouns("iki üç dört/dörd beş altı yedi sekiz dokuz on"),
    "crop": nouns("havuç/havuc domates kabak/kabağ çilek/çileğ"),
    "day": nouns("pazartesi salı çarşamba perşembe cuma cumartesi pazar"),
    "feeling": nouns("mutlu üzgün yorgun aç kızgın susuz hasta neşeli"),
}
