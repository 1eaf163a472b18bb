"""English questions of the story generator: about short passages, and about facts of the world."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from mm_rec.stories.english_words import POOLS
from mm_rec.stories.patterns import FactGroup, Family, QuestionPattern, Word

FAMILIES = (
    Family(
        "bought",
        {"hero": "child", "thing": "thing", "colour": "colour"},
        ("Today {hero} bought {colour.a} {thing}.", "Today {hero} found {colour.a} {thing} at home."),
        (
            QuestionPattern(
                ("What colour is {hero}'s {thing}?", "What colour is the {thing}?"),
                "{colour}",
                "the {thing} is {colour}.",
            ),
            QuestionPattern(
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
            QuestionPattern(("What colour is the {thing}?",), "{colour}", "the {thing} is {colour}."),
            QuestionPattern(("What colour is the {other}?",), "{shade}", "the {other} is {shade}."),
            QuestionPattern(("Who has the {thing}?",), "{hero}", "{hero} has the {thing}."),
            QuestionPattern(("Who has the {other}?",), "{friend}", "{friend} has the {other}."),
        ),
    ),
    Family(
        "trip",
        {"hero": "child", "place": "place", "day": "day"},
        ("{hero} went {place.to} on {day}.", "On {day} {hero} walked {place.to} alone."),
        (
            QuestionPattern(
                ("Where did {hero} go?", "Where did {hero} go on {day}?"),
                "{place.to}",
                "{hero} went {place.to}.",
            ),
            QuestionPattern(("Who went {place.to}?",), "{hero}", "{hero} went {place.to}."),
            QuestionPattern(
                ("When did {hero} go {place.to}?",), "on {day}", "{hero} went {place.to} on {day}."
            ),
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
            QuestionPattern(("Where did {hero} go?",), "{place.to}", "{hero} went {place.to}."),
            QuestionPattern(("Where did {friend} go?",), "{goal.to}", "{friend} went {goal.to}."),
            QuestionPattern(("Who went {place.to}?",), "{hero}", "{hero} went {place.to}."),
            QuestionPattern(("Who went {goal.to}?",), "{friend}", "{friend} went {goal.to}."),
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
            QuestionPattern(("Where is the {thing}?",), "{spot}", "the {thing} is {spot}."),
            QuestionPattern(("Where is the {other}?",), "{corner}", "the {other} is {corner}."),
            QuestionPattern(("What is {spot}?",), "the {thing}", "the {thing} is {spot}."),
            QuestionPattern(("What is {corner}?",), "the {other}", "the {other} is {corner}."),
        ),
    ),
    Family(
        "ate",
        {"hero": "child", "food": "food", "place": "place"},
        ("{hero} ate {food.a} {place.at}.", "{hero} was hungry and ate {food.a} {place.at}."),
        (
            QuestionPattern(
                ("What did {hero} eat?", "What did {hero} eat {place.at}?"),
                "{food.a}",
                "{hero} ate {food.a}.",
            ),
            QuestionPattern(("Who ate the {food}?",), "{hero}", "{hero} ate the {food}."),
            QuestionPattern(
                ("Where did {hero} eat the {food}?",), "{place.at}", "{hero} ate the {food} {place.at}."
            ),
        ),
    ),
    Family(
        "two_meals",
        {"hero": "child", "friend": "child", "food": "food", "meal": "food"},
        ("{hero} ate {food.a}. {friend} ate {meal.a}.", "{hero} ate {food.a}, but {friend} ate {meal.a}."),
        (
            QuestionPattern(("What did {hero} eat?",), "{food.a}", "{hero} ate {food.a}."),
            QuestionPattern(("What did {friend} eat?",), "{meal.a}", "{friend} ate {meal.a}."),
            QuestionPattern(("Who ate the {food}?",), "{hero}", "{hero} ate the {food}."),
            QuestionPattern(("Who ate the {meal}?",), "{friend}", "{friend} ate the {meal}."),
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
            QuestionPattern(
                ("Who gave the {thing} to {friend}?", "Who gave the {thing}?"),
                "{hero}",
                "{hero} gave the {thing}.",
            ),
            QuestionPattern(("Who got the {thing}?",), "{friend}", "{friend} got the {thing}."),
            QuestionPattern(("What colour is the {thing}?",), "{colour}", "the {thing} is {colour}."),
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
            QuestionPattern(("Who lost the {thing}?",), "{hero}", "{hero} lost the {thing}."),
            QuestionPattern(("Who found the {thing}?",), "{friend}", "{friend} found the {thing}."),
            QuestionPattern(("Where was the {thing}?",), "{spot}", "the {thing} was {spot}."),
            QuestionPattern(("What did {hero} lose?",), "the {thing}", "{hero} lost the {thing}."),
        ),
    ),
    Family(
        "pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "colour": "colour"},
        ("{hero} has a little {pet} called {pet_name}. It has {colour.a} bed.",),
        (
            QuestionPattern(
                ("What is the {pet} called?", "What is {hero}'s {pet} called?"),
                "{pet_name}",
                "the {pet} is called {pet_name}.",
            ),
            QuestionPattern(
                ("What colour is {pet_name}'s bed?",), "{colour}", "{pet_name}'s bed is {colour}."
            ),
            QuestionPattern(("Who has a little {pet}?",), "{hero}", "{hero} has a little {pet}."),
        ),
    ),
    Family(
        "saw",
        {"hero": "child", "animal": "animal", "place": "place"},
        ("{hero} saw {animal.a} {place.at}.", "This morning {hero} saw {animal.a} {place.at}."),
        (
            QuestionPattern(
                ("What did {hero} see?", "What did {hero} see {place.at}?"),
                "{animal.a}",
                "{hero} saw {animal.a}.",
            ),
            QuestionPattern(
                ("Where did {hero} see the {animal}?",), "{place.at}", "{hero} saw the {animal} {place.at}."
            ),
            QuestionPattern(("Who saw the {animal}?",), "{hero}", "{hero} saw the {animal}."),
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
            QuestionPattern(("How is {hero} today?",), "{feeling}", "{hero} is {feeling} today."),
            QuestionPattern(("How is {friend} today?",), "{mood}", "{friend} is {mood} today."),
            QuestionPattern(("Who is {feeling}?",), "{hero}", "{hero} is {feeling}."),
            QuestionPattern(("Who is {mood}?",), "{friend}", "{friend} is {mood}."),
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
            QuestionPattern(("Who came first?", "Who won the race?"), "{hero}", "{hero} came first."),
            QuestionPattern(("Who came second?",), "{friend}", "{friend} came second."),
            QuestionPattern(("Who came third?", "Who was the last?"), "{third}", "{third} came third."),
        ),
    ),
    Family(
        "count",
        {"hero": "child", "fruit": "fruit", "number": "number"},
        ("{hero} has {number} {fruit}.", "There are {number} {fruit} in {hero}'s bag."),
        (
            QuestionPattern(
                ("How many {fruit} does {hero} have?", "How many {fruit} are there?"),
                "{number}",
                "there are {number} {fruit}.",
            ),
            QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
        QuestionPattern(
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
