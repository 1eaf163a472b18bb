"""English questions of the story generator: about short passages, and about facts of the world."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from mm_rec.stories.english_words import POOLS
from mm_rec.stories.patterns import Ask, FactGroup, Family, Word

FAMILIES = (
    Family(
        "bought",
        {"hero": "child", "thing": "thing", "colour": "colour"},
        ("Today {hero} bought {colour.a} {thing}.", "Today {hero} found {colour.a} {thing} at home."),
        (
            Ask(
                ("What colour is {hero}'s {thing}?", "What colour is the {thing}?"),
                "{colour}",
                "the {thing} is {colour}.",
            ),
            Ask(
                ("Who has the {colour} {thing}?", "Who has the {thing}?"), "{hero}", "{hero} has the {thing}."
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
            "{hero} has {colour.a} {thing}. {friend} has {shade.a} {other}.",
            "{hero} has {colour.a} {thing}, and {friend} has {shade.a} {other}.",
        ),
        (
            Ask(("What colour is the {thing}?",), "{colour}", "the {thing} is {colour}."),
            Ask(("What colour is the {other}?",), "{shade}", "the {other} is {shade}."),
            Ask(("Who has the {thing}?",), "{hero}", "{hero} has the {thing}."),
            Ask(("Who has the {other}?",), "{friend}", "{friend} has the {other}."),
        ),
    ),
    Family(
        "trip",
        {"hero": "child", "place": "place", "day": "day"},
        ("{hero} went {place.to} on {day}.", "On {day} {hero} walked {place.to} alone."),
        (
            Ask(
                ("Where did {hero} go?", "Where did {hero} go on {day}?"),
                "{place.to}",
                "{hero} went {place.to}.",
            ),
            Ask(("Who went {place.to}?",), "{hero}", "{hero} went {place.to}."),
            Ask(("When did {hero} go {place.to}?",), "on {day}", "{hero} went {place.to} on {day}."),
        ),
    ),
    Family(
        "two_trips",
        {"hero": "child", "friend": "child", "place": "place", "goal": "place"},
        (
            "{hero} went {place.to}. {friend} went {goal.to}.",
            "In the morning {hero} went {place.to}, and {friend} went {goal.to}.",
        ),
        (
            Ask(("Where did {hero} go?",), "{place.to}", "{hero} went {place.to}."),
            Ask(("Where did {friend} go?",), "{goal.to}", "{friend} went {goal.to}."),
            Ask(("Who went {place.to}?",), "{hero}", "{hero} went {place.to}."),
            Ask(("Who went {goal.to}?",), "{friend}", "{friend} went {goal.to}."),
        ),
    ),
    Family(
        "where_is",
        {"thing": "thing", "other": "thing", "spot": "indoor_spot", "corner": "indoor_spot"},
        (
            "The {thing} is {spot}. The {other} is {corner}.",
            "The {thing} is {spot}, and the {other} is {corner}.",
        ),
        (
            Ask(("Where is the {thing}?",), "{spot}", "the {thing} is {spot}."),
            Ask(("Where is the {other}?",), "{corner}", "the {other} is {corner}."),
            Ask(("What is {spot}?",), "the {thing}", "the {thing} is {spot}."),
            Ask(("What is {corner}?",), "the {other}", "the {other} is {corner}."),
        ),
    ),
    Family(
        "ate",
        {"hero": "child", "food": "food", "place": "place"},
        ("{hero} ate {food.a} {place.at}.", "{hero} was hungry and ate {food.a} {place.at}."),
        (
            Ask(
                ("What did {hero} eat?", "What did {hero} eat {place.at}?"),
                "{food.a}",
                "{hero} ate {food.a}.",
            ),
            Ask(("Who ate the {food}?",), "{hero}", "{hero} ate the {food}."),
            Ask(("Where did {hero} eat the {food}?",), "{place.at}", "{hero} ate the {food} {place.at}."),
        ),
    ),
    Family(
        "two_meals",
        {"hero": "child", "friend": "child", "food": "food", "meal": "food"},
        ("{hero} ate {food.a}. {friend} ate {meal.a}.", "{hero} ate {food.a}, but {friend} ate {meal.a}."),
        (
            Ask(("What did {hero} eat?",), "{food.a}", "{hero} ate {food.a}."),
            Ask(("What did {friend} eat?",), "{meal.a}", "{friend} ate {meal.a}."),
            Ask(("Who ate the {food}?",), "{hero}", "{hero} ate the {food}."),
            Ask(("Who ate the {meal}?",), "{friend}", "{friend} ate the {meal}."),
        ),
    ),
    Family(
        "gift",
        {"hero": "child", "friend": "child", "thing": "thing", "colour": "colour"},
        (
            "{hero} gave {colour.a} {thing} to {friend}.",
            "Yesterday {hero} gave {colour.a} {thing} to {friend}.",
        ),
        (
            Ask(
                ("Who gave the {thing} to {friend}?", "Who gave the {thing}?"),
                "{hero}",
                "{hero} gave the {thing}.",
            ),
            Ask(("Who got the {thing}?",), "{friend}", "{friend} got the {thing}."),
            Ask(("What colour is the {thing}?",), "{colour}", "the {thing} is {colour}."),
        ),
    ),
    Family(
        "lost_found",
        {"hero": "child", "friend": "child", "thing": "thing", "spot": "outdoor_spot"},
        (
            "{hero} lost the {thing}. {friend} found it {spot}.",
            "{hero} lost the {thing}, and {friend} found it {spot}.",
        ),
        (
            Ask(("Who lost the {thing}?",), "{hero}", "{hero} lost the {thing}."),
            Ask(("Who found the {thing}?",), "{friend}", "{friend} found the {thing}."),
            Ask(("Where was the {thing}?",), "{spot}", "the {thing} was {spot}."),
            Ask(("What did {hero} lose?",), "the {thing}", "{hero} lost the {thing}."),
        ),
    ),
    Family(
        "pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "colour": "colour"},
        ("{hero} has a little {pet} called {pet_name}. It has {colour.a} bed.",),
        (
            Ask(
                ("What is the {pet} called?", "What is {hero}'s {pet} called?"),
                "{pet_name}",
                "the {pet} is called {pet_name}.",
            ),
            Ask(("What colour is {pet_name}'s bed?",), "{colour}", "{pet_name}'s bed is {colour}."),
            Ask(("Who has a little {pet}?",), "{hero}", "{hero} has a little {pet}."),
        ),
    ),
    Family(
        "saw",
        {"hero": "child", "animal": "animal", "place": "place"},
        ("{hero} saw {animal.a} {place.at}.", "This morning {hero} saw {animal.a} {place.at}."),
        (
            Ask(
                ("What did {hero} see?", "What did {hero} see {place.at}?"),
                "{animal.a}",
                "{hero} saw {animal.a}.",
            ),
            Ask(("Where did {hero} see the {animal}?",), "{place.at}", "{hero} saw the {animal} {place.at}."),
            Ask(("Who saw the {animal}?",), "{hero}", "{hero} saw the {animal}."),
        ),
    ),
    Family(
        "feelings",
        {"hero": "child", "friend": "child", "feeling": "feeling", "mood": "feeling"},
        (
            "{hero} is {feeling} today. {friend} is {mood}.",
            "Today {hero} is {feeling}, but {friend} is {mood}.",
        ),
        (
            Ask(("How is {hero} today?",), "{feeling}", "{hero} is {feeling} today."),
            Ask(("How is {friend} today?",), "{mood}", "{friend} is {mood} today."),
            Ask(("Who is {feeling}?",), "{hero}", "{hero} is {feeling}."),
            Ask(("Who is {mood}?",), "{friend}", "{friend} is {mood}."),
        ),
    ),
    Family(
        "podium",
        {"hero": "child", "friend": "child", "third": "child"},
        (
            "{hero}, {friend} and {third} ran a race. {hero} came first, {friend} came second,"
            " {third} came third.",
            "There was a race. {hero} came first, {friend} came second, {third} came third.",
        ),
        (
            Ask(("Who came first?", "Who won the race?"), "{hero}", "{hero} came first."),
            Ask(("Who came second?",), "{friend}", "{friend} came second."),
            Ask(("Who came third?", "Who was the last?"), "{third}", "{third} came third."),
        ),
    ),
    Family(
        "count",
        {"hero": "child", "fruit": "fruit", "number": "number"},
        ("{hero} has {number} {fruit}.", "There are {number} {fruit} in {hero}'s bag."),
        (
            Ask(
                ("How many {fruit} does {hero} have?", "How many {fruit} are there?"),
                "{number}",
                "there are {number} {fruit}.",
            ),
            Ask(
                ("Who has {number} {fruit}?", "Who has the {fruit}?"),
                "{hero}",
                "{hero} has {number} {fruit}.",
            ),
        ),
    ),
)

_NUMBERS = ["one", *POOLS["number"]]
_DAYS = POOLS["day"]
_NEXT_DAYS = (*_DAYS[1:], _DAYS[0])
_COLOUR_FACTS = (
    "a lemon:yellow, grass:green, the sky:blue, snow:white, coal:black, a tomato:red, a banana:yellow, a"
    " strawberry:red, a cloud:white, a leaf:green, a carrot:orange, a cherry:red, a crow:black, the"
    " sun:yellow, the sea:blue, milk:white"
)
_SOUND_FACTS = (
    "a cat:meow, a dog:woof, a cow:moo, a sheep:baa, a duck:quack, a lion:roar, a bee:buzz, a pig:oink,"
    " a horse:neigh, a bird:tweet"
)
_HOME_FACTS = (
    "a fish:in the water, a bird:in a nest, a bee:in a hive, a bear:in a cave, a horse:in a stable, a"
    " camel:in the desert, a penguin:on the ice, a monkey:in the trees, a spider:in a web, a fox:in the"
    " forest"
)
_OPPOSITES = (
    "big:small, long:short, hot:cold, open:closed, new:old, fast:slow, happy:sad, clean:dirty, full:empty,"
    " day:night, wet:dry"
)


def _pairs(table: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in (row.strip().split(":") for row in table.split(","))]


def _facts(rows: Iterable[tuple[str, str]]) -> tuple[Mapping[str, Word], ...]:
    return tuple({"x": Word(left), "y": Word(right)} for left, right in rows)


FACT_GROUPS = (
    FactGroup(
        "colour",
        Ask(
            (
                "What colour is {x}?",
                "Which colour is {x}?",
                "What is the colour of {x}?",
                "Tell me, what colour is {x}?",
                "Do you know the colour of {x}?",
            ),
            "{y}",
            "{x} is {y}.",
        ),
        _facts(_pairs(_COLOUR_FACTS)),
    ),
    FactGroup(
        "sound",
        Ask(
            (
                "What does {x} say?",
                "What sound does {x} make?",
                "Which sound does {x} make?",
                "What is the sound of {x}?",
                "Do you know the sound of {x}?",
            ),
            "{y}",
            "{x} says {y}.",
        ),
        _facts(_pairs(_SOUND_FACTS)),
    ),
    FactGroup(
        "home",
        Ask(
            (
                "Where does {x} live?",
                "Where is the home of {x}?",
                "Tell me, where does {x} live?",
                "Do you know where {x} lives?",
            ),
            "{y}",
            "{x} lives {y}.",
        ),
        _facts(_pairs(_HOME_FACTS)),
    ),
    FactGroup(
        "opposite",
        Ask(
            (
                "What is the opposite of {x}?",
                "Which word is the opposite of {x}?",
                "Tell me the opposite of {x}.",
                "Do you know the opposite of {x}?",
            ),
            "{y}",
            "the opposite of {x} is {y}.",
        ),
        _facts([pair for a, b in _pairs(_OPPOSITES) for pair in ((a, b), (b, a))]),
    ),
    FactGroup(
        "day_after",
        Ask(
            (
                "Which day comes after {x}?",
                "What day comes after {x}?",
                "What is the day after {x}?",
                "Tell me the day after {x}.",
            ),
            "{y}",
            "the day after {x} is {y}.",
        ),
        _facts(zip(_DAYS, _NEXT_DAYS, strict=True)),
    ),
    FactGroup(
        "day_before",
        Ask(
            (
                "Which day comes before {x}?",
                "What day comes before {x}?",
                "What is the day before {x}?",
                "Tell me the day before {x}.",
            ),
            "{y}",
            "the day before {x} is {y}.",
        ),
        _facts(zip(_NEXT_DAYS, _DAYS, strict=True)),
    ),
    FactGroup(
        "number_after",
        Ask(
            (
                "Which number comes after {x}?",
                "What number comes after {x}?",
                "What is the number after {x}?",
                "Tell me the number after {x}.",
            ),
            "{y}",
            "the number after {x} is {y}.",
        ),
        _facts(pairwise(_NUMBERS)),
    ),
    FactGroup(
        "sum",
        Ask(
            (
                "What is {x}?",
                "How much is {x}?",
                "Tell me, what is {x}?",
                "Do you know what {x} is?",
            ),
            "{y}",
            "{x} is {y}.",
        ),
        _facts(
            [
                (f"{_NUMBERS[a - 1]} plus {_NUMBERS[b - 1]}", _NUMBERS[a + b - 1])
                for a in range(1, 6)
                for b in range(1, 6)
            ]
        ),
    ),
)
