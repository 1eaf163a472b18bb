"""English words of the story generator with the forms that its patterns use."""

from mm_rec.stories.patterns import Pools, Word


def with_article(word: str) -> str:
    """Return `word` behind its indefinite article, decided by its first letter ("an apple", "a ball")."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _nouns(words: str) -> tuple[Word, ...]:
    return tuple(Word(word, a=with_article(word)) for word in words.split())


def _masses(words: str) -> tuple[Word, ...]:
    return tuple(Word(word, a=f"some {word}") for word in words.split())


def _plurals(words: str) -> tuple[Word, ...]:
    return tuple(Word(f"{word}s") for word in words.split())


def _people(names: str, he: str, him: str, his: str) -> tuple[Word, ...]:
    return tuple(Word(name, he=he, him=him, his=his) for name in names.split())


def _places(words: str, at: str) -> tuple[Word, ...]:
    return tuple(
        Word(word, the=f"the {word}", to=f"to the {word}", at=f"{at} the {word}") for word in words.split()
    )


def _phrases(*phrases: str) -> tuple[Word, ...]:
    return tuple(Word(phrase) for phrase in phrases)


_OUTDOOR = (
    *_places("park garden forest village playground meadow", "in"),
    *_places("beach lake river farm zoo", "at"),
    *_places("hill island", "on"),
)

_RELATIVES = (
    *_people("grandmother aunt", "she", "her", "her"),
    *_people("grandfather uncle", "he", "him", "his"),
)

POOLS: Pools = {
    "child": (
        *_people(
            "Mia Emma Lily Anna Sara Lucy Zoe Ella Ruby Alice Kate Nora Rose Grace Maya Eva",
            "she",
            "her",
            "her",
        ),
        *_people(
            "Tom Ben Sam Max Leo Jack Noah Adam Oscar Finn Luke Peter Theo Henry David Hugo",
            "he",
            "him",
            "his",
        ),
    ),
    "elder": (*_RELATIVES, *_people("mother", "she", "her", "her"), *_people("father", "he", "him", "his")),
    "relative": _RELATIVES,
    "pet_name": _phrases("Luna", "Bella", "Toby", "Coco", "Milo", "Daisy", "Rocky", "Pepper"),
    "thing": _nouns(
        "ball book kite doll hat bag cup drum key lamp bell box car boat train robot puzzle basket scarf"
        " pencil spoon ring coin umbrella blanket flute mask flag button balloon notebook whistle"
    ),
    "light_thing": _nouns("kite hat scarf flag mask ball balloon"),
    "toy": _nouns("robot car boat train drum flute puppet kite"),
    "winter_thing": _nouns("scarf hat"),
    "colour": _nouns("red blue green yellow white black brown pink purple orange"),
    "odd_colour": _nouns("blue purple pink"),
    "place": (*_OUTDOOR, *_places("market library castle", "in"), *_places("museum", "at")),
    "outdoor": _OUTDOOR,
    "wild_place": (
        *_places("forest meadow", "in"),
        *_places("river lake", "by"),
        *_places("hill island", "on"),
    ),
    "indoor_spot": _phrases(
        "under the bed",
        "behind the door",
        "under the table",
        "under the chair",
        "by the window",
        "behind the sofa",
        "in the cupboard",
        "behind the curtain",
        "under the stairs",
        "in the bathroom",
    ),
    "outdoor_spot": _phrases(
        "under a tree",
        "behind a bush",
        "in the tall grass",
        "under a bench",
        "next to a stone",
        "behind a fence",
        "among the flowers",
        "near a wall",
    ),
    "animal": _nouns(
        "cat dog rabbit bird duck horse cow sheep fox bear frog mouse owl elephant goat hen pig lion turtle"
        " squirrel"
    ),
    "drawn_animal": _nouns("cat dog rabbit horse cow fox bear elephant lion turtle"),
    "pet": _nouns("cat dog rabbit bird mouse turtle duck"),
    "cold_animal": _nouns("cat dog rabbit bird squirrel"),
    "beast": _nouns("fox bear rabbit mouse squirrel duck"),
    "helper": _nouns("owl horse goat cow turtle elephant"),
    "climber": _nouns("squirrel cat monkey"),
    "food": (
        *_nouns("apple banana pear peach orange egg cookie sandwich carrot"),
        *_masses("bread cheese soup rice honey cake"),
    ),
    "treat": _nouns("apple pear peach orange cookie sandwich banana"),
    "dish": _nouns("cake pie soup pizza salad"),
    "ingredient": _phrases("milk", "flour", "salt", "butter", "oil"),
    "fruit": _plurals("apple pear orange banana cookie egg carrot lemon button coin balloon flower"),
    "number": _phrases("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "crop": _nouns("carrot tomato pumpkin strawberry"),
    "day": _phrases("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "feeling": _phrases("happy", "sad", "tired", "hungry", "angry", "thirsty", "busy", "afraid"),
}
