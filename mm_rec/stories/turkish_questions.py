"""Turkish questions of the story generator: about short passages, and about facts of the world."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from mm_rec.stories.patterns import FactGroup, Family, QuestionPattern, Word
from mm_rec.stories.turkish_words import POOLS, noun, nouns

FAMILIES = (
    Family(
        "bought",
        {"hero": "child", "thing": "thing", "colour": "colour"},
        ("Bugün {hero} {colour} bir {thing} aldı.", "Bugün {hero} çarşıdan {colour} bir {thing} aldı."),
        (
            QuestionPattern(
                ("{hero} ne renk bir {thing} aldı?", "Bu {thing} ne renk?"),
                "{colour}",
                "bu {thing} {colour}.",
            ),
            QuestionPattern(
                ("Kim bir {thing} aldı?", "Kim {colour} bir {thing} aldı?"),
                "{hero}",
                "{hero} bir {thing} aldı.",
            ),
            QuestionPattern(
                ("{hero} ne aldı?",), "{colour} bir {thing}", "{hero} {colour} bir {thing} aldı."
            ),
        ),
    ),
    Family(
        "two_owners",
        {
            "hero": "child",
            "friend": "child",
            "thing": "thing",
            "other": "thing",
            "colour": "colour",
            "shade": "colour",
        },
        (
            "{hero.gen} {colour} bir {thing.own} var. {friend.gen} {shade} bir {other.own} var.",
            "{hero.gen} {colour} bir {thing.own}, {friend.gen} ise {shade} bir {other.own} var.",
        ),
        (
            QuestionPattern(
                ("{hero.gen} {thing.own} ne renk?",), "{colour}", "{hero.gen} {thing.own} {colour}."
            ),
            QuestionPattern(
                ("{friend.gen} {other.own} ne renk?",), "{shade}", "{friend.gen} {other.own} {shade}."
            ),
            QuestionPattern(("Kimin bir {thing.own} var?",), "{hero.gen}", "{hero.gen} bir {thing.own} var."),
            QuestionPattern(
                ("Kimin bir {other.own} var?",), "{friend.gen}", "{friend.gen} bir {other.own} var."
            ),
        ),
    ),
    Family(
        "trip",
        {"hero": "child", "place": "place", "day": "day"},
        ("{hero} {day} günü {place.dat} gitti.", "{hero} {day} günü tek başına {place.dat} gitti."),
        (
            QuestionPattern(
                ("{hero} nereye gitti?", "{hero} {day} günü nereye gitti?"),
                "{place.dat}",
                "{hero} {place.dat} gitti.",
            ),
            QuestionPattern(("Kim {place.dat} gitti?",), "{hero}", "{hero} {place.dat} gitti."),
            QuestionPattern(
                ("{hero} ne zaman {place.dat} gitti?",), "{day} günü", "{hero} {day} günü {place.dat} gitti."
            ),
        ),
    ),
    Family(
        "two_trips",
        {"hero": "child", "friend": "child", "place": "place", "goal": "place"},
        (
            "{hero} {place.dat} gitti. {friend} {goal.dat} gitti.",
            "{hero} {place.dat}, {friend} ise {goal.dat} gitti.",
        ),
        (
            QuestionPattern(("{hero} nereye gitti?",), "{place.dat}", "{hero} {place.dat} gitti."),
            QuestionPattern(("{friend} nereye gitti?",), "{goal.dat}", "{friend} {goal.dat} gitti."),
            QuestionPattern(("Kim {place.dat} gitti?",), "{hero}", "{hero} {place.dat} gitti."),
            QuestionPattern(("Kim {goal.dat} gitti?",), "{friend}", "{friend} {goal.dat} gitti."),
        ),
    ),
    Family(
        "where_is",
        {"thing": "thing", "other": "thing", "spot": "indoor_spot", "corner": "indoor_spot"},
        ("Bugün {thing} {spot}, {other} {corner}.", "Şimdi {thing} {spot}, {other} ise {corner}."),
        (
            QuestionPattern(("Peki {thing} nerede?",), "{spot}", "{thing} {spot}."),
            QuestionPattern(("Peki {other} nerede?",), "{corner}", "{other} {corner}."),
            QuestionPattern(("Peki {spot} ne var?",), "{thing}", "{spot} {thing} var."),
            QuestionPattern(("Peki {corner} ne var?",), "{other}", "{corner} {other} var."),
        ),
    ),
    Family(
        "ate",
        {"hero": "child", "food": "food", "place": "place"},
        ("{hero} {place.loc} {food} yedi.", "{hero} acıktı ve {place.loc} {food} yedi."),
        (
            QuestionPattern(
                ("{hero} ne yedi?", "{hero} {place.loc} ne yedi?"), "{food}", "{hero} {food} yedi."
            ),
            QuestionPattern(("Kim {food} yedi?",), "{hero}", "{hero} {food} yedi."),
            QuestionPattern(
                ("{hero} nerede {food} yedi?",), "{place.loc}", "{hero} {place.loc} {food} yedi."
            ),
        ),
    ),
    Family(
        "two_meals",
        {"hero": "child", "friend": "child", "food": "food", "meal": "food"},
        ("{hero} {food} yedi. {friend} {meal} yedi.", "{hero} {food}, {friend} ise {meal} yedi."),
        (
            QuestionPattern(("{hero} ne yedi?",), "{food}", "{hero} {food} yedi."),
            QuestionPattern(("{friend} ne yedi?",), "{meal}", "{friend} {meal} yedi."),
            QuestionPattern(("Kim {food} yedi?",), "{hero}", "{hero} {food} yedi."),
            QuestionPattern(("Kim {meal} yedi?",), "{friend}", "{friend} {meal} yedi."),
        ),
    ),
    Family(
        "gift",
        {"hero": "child", "friend": "child", "thing": "thing", "colour": "colour"},
        (
            "{hero}, {friend.dat} {colour} bir {thing} verdi.",
            "Dün {hero}, {friend.dat} {colour} bir {thing} verdi.",
        ),
        (
            QuestionPattern(
                ("Kim bir {thing} verdi?", "Kim {friend.dat} bir {thing} verdi?"),
                "{hero}",
                "{hero} bir {thing} verdi.",
            ),
            QuestionPattern(
                ("{hero} kime bir {thing} verdi?",), "{friend.dat}", "{hero} {friend.dat} bir {thing} verdi."
            ),
            QuestionPattern(("Bu {thing} ne renk?",), "{colour}", "bu {thing} {colour}."),
        ),
    ),
    Family(
        "lost_found",
        {"hero": "child", "friend": "child", "thing": "thing", "spot": "outdoor_spot"},
        (
            "{hero} {thing.acc} kaybetti. {friend} onu {spot} buldu.",
            "{hero} {thing.acc} kaybetti, {friend} ise onu {spot} buldu.",
        ),
        (
            QuestionPattern(("Kim {thing.acc} kaybetti?",), "{hero}", "{hero} {thing.acc} kaybetti."),
            QuestionPattern(("Kim {thing.acc} buldu?",), "{friend}", "{friend} {thing.acc} buldu."),
            QuestionPattern(
                ("{friend} {thing.acc} nerede buldu?",), "{spot}", "{friend} {thing.acc} {spot} buldu."
            ),
            QuestionPattern(("{hero} neyi kaybetti?",), "{thing.acc}", "{hero} {thing.acc} kaybetti."),
        ),
    ),
    Family(
        "pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "colour": "colour"},
        ("{hero.gen} {pet_name} adında bir {pet.own} var. Onun {colour} bir yatağı var.",),
        (
            QuestionPattern(
                ("{hero.gen} {pet.own_gen} adı ne?", "Onun adı ne?"), "{pet_name}", "onun adı {pet_name}."
            ),
            QuestionPattern(
                ("{pet_name.gen} yatağı ne renk?", "Onun yatağı ne renk?"),
                "{colour}",
                "onun yatağı {colour}.",
            ),
            QuestionPattern(
                ("{pet_name} kimin {pet.own}?",), "{hero.gen}", "{pet_name} {hero.gen} {pet.own}."
            ),
        ),
    ),
    Family(
        "saw",
        {"hero": "child", "animal": "animal", "place": "place"},
        ("{hero} {place.loc} bir {animal} gördü.", "Bu sabah {hero} {place.loc} bir {animal} gördü."),
        (
            QuestionPattern(
                ("{hero} ne gördü?", "{hero} {place.loc} ne gördü?"),
                "bir {animal}",
                "{hero} bir {animal} gördü.",
            ),
            QuestionPattern(
                ("{hero} nerede bir {animal} gördü?",),
                "{place.loc}",
                "{hero} {place.loc} bir {animal} gördü.",
            ),
            QuestionPattern(("Kim bir {animal} gördü?",), "{hero}", "{hero} bir {animal} gördü."),
        ),
    ),
    Family(
        "feelings",
        {"hero": "child", "friend": "child", "feeling": "feeling", "mood": "feeling"},
        ("Bugün {hero} {feeling}. Bugün {friend} {mood}.", "Bugün {hero} {feeling}, {friend} ise {mood}."),
        (
            QuestionPattern(("{hero} bugün nasıl?",), "{feeling}", "{hero} {feeling}."),
            QuestionPattern(("{friend} bugün nasıl?",), "{mood}", "{friend} {mood}."),
            QuestionPattern(("Kim {feeling}?",), "{hero}", "{hero} {feeling}."),
            QuestionPattern(("Kim {mood}?",), "{friend}", "{friend} {mood}."),
        ),
    ),
    Family(
        "podium",
        {"hero": "child", "friend": "child", "third": "child"},
        (
            "{hero}, {friend} ve {third} yarıştı. {hero} birinci, {friend} ikinci, {third} üçüncü oldu.",
            "Bir yarış vardı. {hero} birinci, {friend} ikinci, {third} üçüncü oldu.",
        ),
        (
            QuestionPattern(("Kim birinci oldu?", "Yarışı kim kazandı?"), "{hero}", "{hero} birinci oldu."),
            QuestionPattern(("Kim ikinci oldu?",), "{friend}", "{friend} ikinci oldu."),
            QuestionPattern(("Kim üçüncü oldu?", "Kim sonuncu oldu?"), "{third}", "{third} üçüncü oldu."),
        ),
    ),
    Family(
        "count",
        {"hero": "child", "fruit": "fruit", "number": "number"},
        ("{hero.gen} {number} {fruit.own} var.", "{hero.gen} bugün {number} {fruit.own} var."),
        (
            QuestionPattern(
                ("{hero.gen} kaç {fruit.own} var?",), "{number}", "{hero.gen} {number} {fruit.own} var."
            ),
            QuestionPattern(
                ("Kimin {number} {fruit.own} var?",), "{hero.gen}", "{hero.gen} {number} {fruit.own} var."
            ),
        ),
    ),
)

_NUMBERS = nouns("bir iki üç dört/dörd beş altı yedi sekiz dokuz on")
_DAYS = POOLS["day"]
_NEXT_DAYS = (*_DAYS[1:], _DAYS[0])
_COLOUR_FACTS = (
    "limon:sarı, çimen:yeşil, gökyüzü:mavi, kar:beyaz, kömür:siyah, domates:kırmızı, muz:sarı,"
    " çilek/çileğ:kırmızı, bulut:beyaz, yaprak/yaprağ:yeşil, havuç/havuc:turuncu, kiraz:kırmızı, karga:siyah,"
    " güneş:sarı, deniz:mavi, süt:beyaz"
)
_SOUND_FACTS = (
    "kedi:miyav, köpek/köpeğ:hav hav, inek/ineğ:möö, kuzu:mee, ördek/ördeğ:vak vak, arı:vız vız,"
    " kuş:cik cik, tavuk/tavuğ:gıt gıt, karga:gak gak, yılan:tıs tıs"
)
_HOME_FACTS = (
    "balık/balığ:suda, kuş:yuvada, arı:kovanda, ayı:mağarada, at:ahırda, deve:çölde, penguen:buzda,"
    " maymun:ağaçta, örümcek/örümceğ:ağda, tilki:ormanda"
)
_OPPOSITES = (
    "büyük:küçük, uzun:kısa, sıcak:soğuk, açık:kapalı, yeni:eski, hızlı:yavaş, mutlu:üzgün, temiz:kirli,"
    " dolu:boş, gece:gündüz, ıslak:kuru"
)


def _pairs(table: str) -> list[tuple[Word, Word]]:
    rows = (row.strip().split(":") for row in table.split(","))
    return [(noun(*left.split("/")), Word(right, is_=noun(right).form("is_"))) for left, right in rows]


def _facts(rows: Iterable[tuple[Word, Word]]) -> tuple[Mapping[str, Word], ...]:
    return tuple({"x": left, "y": right} for left, right in rows)


FACT_GROUPS = (
    FactGroup(
        "colour",
        QuestionPattern(
            (
                "Sence {x} ne renktir?",
                "Acaba {x} hangi renktir?",
                "Söyle bakalım, {x} ne renktir?",
                "Bana söyle, {x} ne renktir?",
                "{x} ne renktir?",
            ),
            "{y}",
            "{x} {y.is_}.",
        ),
        _facts(_pairs(_COLOUR_FACTS)),
    ),
    FactGroup(
        "sound",
        QuestionPattern(
            (
                "Sence {x} ne der?",
                "Acaba {x} nasıl ses çıkarır?",
                "Söyle bakalım, {x} ne der?",
                "Bana söyle, {x} ne der?",
                "{x} ne der?",
            ),
            "{y}",
            "{x} {y} der.",
        ),
        _facts(_pairs(_SOUND_FACTS)),
    ),
    FactGroup(
        "home",
        QuestionPattern(
            (
                "Sence {x} nerede yaşar?",
                "Acaba {x} nerede yaşar?",
                "Söyle bakalım, {x} nerede yaşar?",
                "{x} nerede yaşar?",
            ),
            "{y}",
            "{x} {y} yaşar.",
        ),
        _facts(_pairs(_HOME_FACTS)),
    ),
    FactGroup(
        "opposite",
        QuestionPattern(
            (
                "Sence {x} kelimesinin zıddı nedir?",
                "Hangi kelime {x} kelimesinin zıddıdır?",
                "Söyle bakalım, {x} kelimesinin zıddı nedir?",
                "{x} kelimesinin zıddı nedir?",
            ),
            "{y}",
            "{x} kelimesinin zıddı {y} kelimesidir.",
        ),
        _facts([pair for a, b in _pairs(_OPPOSITES) for pair in ((a, b), (b, a))]),
    ),
    FactGroup(
        "day_after",
        QuestionPattern(
            (
                "Hangi gün {x.abl} sonra gelir?",
                "Sence {x.abl} sonra hangi gün gelir?",
                "{x.abl} sonra hangi gün gelir?",
                "Söyle bakalım, {x.abl} sonra hangi gün gelir?",
            ),
            "{y}",
            "{x.abl} sonra {y} gelir.",
        ),
        _facts(zip(_DAYS, _NEXT_DAYS, strict=True)),
    ),
    FactGroup(
        "day_before",
        QuestionPattern(
            (
                "Hangi gün {x.abl} önce gelir?",
                "Sence {x.abl} önce hangi gün gelir?",
                "{x.abl} önce hangi gün gelir?",
                "Söyle bakalım, {x.abl} önce hangi gün gelir?",
            ),
            "{y}",
            "{x.abl} önce {y} gelir.",
        ),
        _facts(zip(_NEXT_DAYS, _DAYS, strict=True)),
    ),
    FactGroup(
        "number_after",
        QuestionPattern(
            (
                "Hangi sayı {x.abl} sonra gelir?",
                "Sence {x.abl} sonra hangi sayı gelir?",
                "{x.abl} sonra hangi sayı gelir?",
                "Söyle bakalım, {x.abl} sonra hangi sayı gelir?",
            ),
            "{y}",
            "{x.abl} sonra {y} gelir.",
        ),
        _facts(pairwise(_NUMBERS)),
    ),
    FactGroup(
        "sum",
        QuestionPattern(
            (
                "Sence {x} artı {z} kaç eder?",
                "Acaba {x} artı {z} kaçtır?",
                "Söyle bakalım, {x} artı {z} kaç eder?",
                "Bana söyle, {x} artı {z} kaç eder?",
                "{x} artı {z} kaç eder?",
            ),
            "{y}",
            "{x} artı {z} {y} eder.",
        ),
        tuple(
            {"x": _NUMBERS[a - 1], "z": _NUMBERS[b - 1], "y": _NUMBERS[a + b - 1]}
            for a in range(1, 6)
            for b in range(1, 6)
        ),
    ),
)
