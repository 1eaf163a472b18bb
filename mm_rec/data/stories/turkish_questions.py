"""Turkish questions of the story generator: about short passages, and about facts of the world."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from mm_rec.data.stories.patterns import Ask, FactGroup, Family, Word
from mm_rec.data.stories.turkish_words import POOLS, noun, nouns

FAMILIES = (
    Family(
        "bought",
        {"hero": "child", "thing": "thing", "colour": "colour"},
        ("{hero} bugün {colour} bir {thing} aldı.", "Bugün {hero} çarşıdan {colour} bir {thing} aldı."),
        (
            Ask(
                ("{hero.gen} {thing.own} ne renk?", "{thing} ne renk?"),
                "{colour}",
                "{thing} {colour} renkte.",
            ),
            Ask(
                ("Kim {thing} aldı?", "Kim {colour} bir {thing} aldı?"),
                "{hero}",
                "{hero} {colour} bir {thing} aldı.",
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
            Ask(("{hero.gen} {thing.own} ne renk?",), "{colour}", "{hero.gen} {thing.own} {colour} renkte."),
            Ask(
                ("{friend.gen} {other.own} ne renk?",), "{shade}", "{friend.gen} {other.own} {shade} renkte."
            ),
            Ask(("Kimin {thing.own} var?",), "{hero.gen}", "{hero.gen} {thing.own} var."),
            Ask(("Kimin {other.own} var?",), "{friend.gen}", "{friend.gen} {other.own} var."),
        ),
    ),
    Family(
        "trip",
        {"hero": "child", "place": "place", "day": "day"},
        ("{hero} {day} günü {place.dat} gitti.", "{day} günü {hero} tek başına {place.dat} gitti."),
        (
            Ask(
                ("{hero} nereye gitti?", "{hero} {day} günü nereye gitti?"),
                "{place.dat}",
                "{hero} {place.dat} gitti.",
            ),
            Ask(("{place.dat} kim gitti?",), "{hero}", "{place.dat} {hero} gitti."),
            Ask(
                ("{hero} {place.dat} ne zaman gitti?",), "{day} günü", "{hero} {place.dat} {day} günü gitti."
            ),
        ),
    ),
    Family(
        "two_trips",
        {"hero": "child", "friend": "child", "place": "place", "goal": "place"},
        (
            "{hero} {place.dat} gitti. {friend} {goal.dat} gitti.",
            "Sabah {hero} {place.dat}, {friend} ise {goal.dat} gitti.",
        ),
        (
            Ask(("{hero} nereye gitti?",), "{place.dat}", "{hero} {place.dat} gitti."),
            Ask(("{friend} nereye gitti?",), "{goal.dat}", "{friend} {goal.dat} gitti."),
            Ask(("{place.dat} kim gitti?",), "{hero}", "{place.dat} {hero} gitti."),
            Ask(("{goal.dat} kim gitti?",), "{friend}", "{goal.dat} {friend} gitti."),
        ),
    ),
    Family(
        "where_is",
        {"thing": "thing", "other": "thing", "spot": "indoor_spot", "corner": "indoor_spot"},
        ("{thing} {spot}. {other} {corner}.", "{thing} {spot}, {other} ise {corner}."),
        (
            Ask(("{thing} nerede?",), "{spot}", "{thing} {spot}."),
            Ask(("{other} nerede?",), "{corner}", "{other} {corner}."),
            Ask(("{spot} ne var?",), "{thing}", "{spot} {thing} var."),
            Ask(("{corner} ne var?",), "{other}", "{corner} {other} var."),
        ),
    ),
    Family(
        "ate",
        {"hero": "child", "food": "food", "place": "place"},
        ("{hero} {place.loc} {food} yedi.", "{hero} acıktı ve {place.loc} {food} yedi."),
        (
            Ask(("{hero} ne yedi?", "{hero} {place.loc} ne yedi?"), "{food}", "{hero} {food} yedi."),
            Ask(("{food.acc} kim yedi?",), "{hero}", "{food.acc} {hero} yedi."),
            Ask(("{hero} {food.acc} nerede yedi?",), "{place.loc}", "{hero} {food.acc} {place.loc} yedi."),
        ),
    ),
    Family(
        "two_meals",
        {"hero": "child", "friend": "child", "food": "food", "meal": "food"},
        ("{hero} {food} yedi. {friend} {meal} yedi.", "{hero} {food}, {friend} ise {meal} yedi."),
        (
            Ask(("{hero} ne yedi?",), "{food}", "{hero} {food} yedi."),
            Ask(("{friend} ne yedi?",), "{meal}", "{friend} {meal} yedi."),
            Ask(("{food.acc} kim yedi?",), "{hero}", "{food.acc} {hero} yedi."),
            Ask(("{meal.acc} kim yedi?",), "{friend}", "{meal.acc} {friend} yedi."),
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
            Ask(
                ("{thing.acc} kim verdi?", "{friend.dat} {thing.acc} kim verdi?"),
                "{hero}",
                "{thing.acc} {hero} verdi.",
            ),
            Ask(
                ("{hero} {thing.acc} kime verdi?",), "{friend.dat}", "{hero} {thing.acc} {friend.dat} verdi."
            ),
            Ask(("{thing} ne renk?",), "{colour}", "{thing} {colour} renkte."),
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
            Ask(("{thing.acc} kim kaybetti?",), "{hero}", "{thing.acc} {hero} kaybetti."),
            Ask(("{thing.acc} kim buldu?",), "{friend}", "{thing.acc} {friend} buldu."),
            Ask(("{thing} neredeydi?",), "{spot}", "{thing} {spot} bulundu."),
            Ask(("{hero} neyi kaybetti?",), "{thing.acc}", "{hero} {thing.acc} kaybetti."),
        ),
    ),
    Family(
        "pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "colour": "colour"},
        ("{hero.gen} {pet_name} adında bir {pet.own} var. Onun {colour} bir yatağı var.",),
        (
            Ask(
                ("{pet.gen} adı ne?", "{hero.gen} {pet.own_gen} adı ne?"),
                "{pet_name}",
                "{pet.gen} adı {pet_name}.",
            ),
            Ask(("{pet_name.gen} yatağı ne renk?",), "{colour}", "{pet_name.gen} yatağı {colour} renkte."),
            Ask(("{pet_name} kimin {pet.own}?",), "{hero.gen}", "{pet_name}, {hero.gen} {pet.own}."),
        ),
    ),
    Family(
        "saw",
        {"hero": "child", "animal": "animal", "place": "place"},
        ("{hero} {place.loc} bir {animal} gördü.", "Bu sabah {hero} {place.loc} bir {animal} gördü."),
        (
            Ask(
                ("{hero} ne gördü?", "{hero} {place.loc} ne gördü?"),
                "bir {animal}",
                "{hero} bir {animal} gördü.",
            ),
            Ask(
                ("{hero} {animal.acc} nerede gördü?",),
                "{place.loc}",
                "{hero} {animal.acc} {place.loc} gördü.",
            ),
            Ask(("{animal.acc} kim gördü?",), "{hero}", "{animal.acc} {hero} gördü."),
        ),
    ),
    Family(
        "feelings",
        {"hero": "child", "friend": "child", "feeling": "feeling", "mood": "feeling"},
        ("{hero} bugün {feeling}. {friend} ise {mood}.", "Bugün {hero} {feeling}, {friend} ise {mood}."),
        (
            Ask(("{hero} bugün nasıl?",), "{feeling}", "{hero} bugün {feeling}."),
            Ask(("{friend} bugün nasıl?",), "{mood}", "{friend} bugün {mood}."),
            Ask(("Kim {feeling}?",), "{hero}", "{hero} {feeling}."),
            Ask(("Kim {mood}?",), "{friend}", "{friend} {mood}."),
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
            Ask(("Kim birinci oldu?", "Yarışı kim kazandı?"), "{hero}", "{hero} birinci oldu."),
            Ask(("Kim ikinci oldu?",), "{friend}", "{friend} ikinci oldu."),
            Ask(("Kim üçüncü oldu?", "Kim sonuncu oldu?"), "{third}", "{third} üçüncü oldu."),
        ),
    ),
    Family(
        "count",
        {"hero": "child", "fruit": "fruit", "number": "number"},
        ("{hero.gen} {number} {fruit.own} var.", "{hero.gen} çantasında {number} {fruit} var."),
        (
            Ask(
                ("{hero.gen} kaç {fruit.own} var?", "Kaç {fruit} var?"),
                "{number}",
                "{hero.gen} {number} {fruit.own} var.",
            ),
            Ask(("Kimin {number} {fruit.own} var?",), "{hero.gen}", "{hero.gen} {number} {fruit.own} var."),
        ),
    ),
)

_NUMBERS = nouns("bir iki üç dört/dörd beş altı yedi sekiz dokuz on")
_DAYS = POOLS["day"]
_NEXT_DAYS = (*_DAYS[1:], _DAYS[0])
_COLOUR_FACTS = (
    "limon:sarı, çimen:yeşil, gökyüzü:mavi, kar:beyaz, kömür:siyah, domates:kırmızı, muz:sarı, çilek/çileğ:kırmızı,"
    " bulut:beyaz, yaprak/yaprağ:yeşil, havuç/havuc:turuncu, kiraz:kırmızı, karga:siyah, güneş:sarı, deniz:mavi,"
    " kurbağa:yeşil, süt:beyaz, çikolata:kahverengi, ayı:kahverengi, portakal:turuncu"
)
_SOUND_FACTS = (
    "kedi:miyav, köpek/köpeğ:hav hav, inek/ineğ:möö, kuzu:mee, ördek/ördeğ:vak vak, arı:vız vız,"
    " kurbağa:vrak vrak, kuş:cik cik, tavuk/tavuğ:gıt gıt, karga:gak gak, yılan:tıs tıs, baykuş:hu hu"
)
_HOME_FACTS = (
    "balık/balığ:suda, kuş:yuvada, arı:kovanda, ayı:mağarada, at:ahırda, deve:çölde, penguen:buzda, maymun:ağaçta,"
    " örümcek/örümceğ:ağda, tilki:ormanda"
)
_OPPOSITES = (
    "büyük:küçük, uzun:kısa, sıcak:soğuk, açık:kapalı, yeni:eski, hızlı:yavaş, mutlu:üzgün, temiz:kirli, dolu:boş,"
    " gece:gündüz, kolay:zor, ıslak:kuru, iyi:kötü, güçlü:zayıf"
)


def _pairs(table: str) -> list[tuple[Word, Word]]:
    rows = (row.strip().split(":") for row in table.split(","))
    return [(noun(*left.split("/")), Word(right, is_=noun(right).form("is_"))) for left, right in rows]


def _facts(rows: Iterable[tuple[Word, Word]]) -> tuple[Mapping[str, Word], ...]:
    return tuple({"x": left, "y": right} for left, right in rows)


FACT_GROUPS = (
    FactGroup(
        "colour",
        Ask(
            (
                "{x} ne renktir?",
                "{x} hangi renktir?",
                "{x.gen} rengi nedir?",
                "Söyle bakalım, {x} ne renktir?",
                "{x.gen} rengini biliyor musun?",
            ),
            "{y}",
            "{x} {y.is_}.",
        ),
        _facts(_pairs(_COLOUR_FACTS)),
    ),
    FactGroup(
        "sound",
        Ask(
            (
                "{x} ne der?",
                "{x} nasıl ses çıkarır?",
                "{x} hangi sesi çıkarır?",
                "{x.gen} sesi nasıldır?",
                "{x.gen} sesini biliyor musun?",
            ),
            "{y}",
            "{x} {y} der.",
        ),
        _facts(_pairs(_SOUND_FACTS)),
    ),
    FactGroup(
        "home",
        Ask(
            (
                "{x} nerede yaşar?",
                "{x.gen} evi nerededir?",
                "Söyle bakalım, {x} nerede yaşar?",
                "{x.gen} nerede yaşadığını biliyor musun?",
            ),
            "{y}",
            "{x} {y} yaşar.",
        ),
        _facts(_pairs(_HOME_FACTS)),
    ),
    FactGroup(
        "opposite",
        Ask(
            (
                "{x} kelimesinin zıddı nedir?",
                "Hangi kelime {x} kelimesinin zıddıdır?",
                "{x} kelimesinin zıddını söyle.",
                "{x} kelimesinin zıddını biliyor musun?",
            ),
            "{y}",
            "{x} kelimesinin zıddı {y} kelimesidir.",
        ),
        _facts([pair for a, b in _pairs(_OPPOSITES) for pair in ((a, b), (b, a))]),
    ),
    FactGroup(
        "day_after",
        Ask(
            (
                "{x.abl} sonra hangi gün gelir?",
                "{x.abl} sonraki gün hangisidir?",
                "{x} gününden sonra hangi gün gelir?",
                "Söyle bakalım, {x.abl} sonra hangi gün gelir?",
            ),
            "{y}",
            "{x.abl} sonra {y} gelir.",
        ),
        _facts(zip(_DAYS, _NEXT_DAYS, strict=True)),
    ),
    FactGroup(
        "day_before",
        Ask(
            (
                "{x.abl} önce hangi gün gelir?",
                "{x.abl} önceki gün hangisidir?",
                "{x} gününden önce hangi gün gelir?",
                "Söyle bakalım, {x.abl} önce hangi gün gelir?",
            ),
            "{y}",
            "{x.abl} önce {y} gelir.",
        ),
        _facts(zip(_NEXT_DAYS, _DAYS, strict=True)),
    ),
    FactGroup(
        "number_after",
        Ask(
            (
                "{x.abl} sonra hangi sayı gelir?",
                "{x.abl} sonraki sayı hangisidir?",
                "{x} sayısından sonra hangi sayı gelir?",
                "Söyle bakalım, {x.abl} sonra hangi sayı gelir?",
            ),
            "{y}",
            "{x.abl} sonra {y} gelir.",
        ),
        _facts(pairwise(_NUMBERS)),
    ),
    FactGroup(
        "sum",
        Ask(
            (
                "{x} artı {z} kaç eder?",
                "{x} artı {z} kaçtır?",
                "{x} ile {z.gen} toplamı kaçtır?",
                "{x} ile {z.acc} toplarsak kaç eder?",
                "Söyle bakalım, {x} artı {z} kaç eder?",
            ),
            "{y}",
            "{x} artı {z} {y} eder.",
        ),
        tuple(
            {"x": _NUMBERS[a - 1], "z": _NUMBERS[b - 1], "y": _NUMBERS[a + b - 1]}
            for a in range(1, 10)
            for b in range(1, 11 - a)
        ),
    ),
)
