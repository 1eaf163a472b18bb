"""English for the story generator: everything in it was written for this project."""

from mm_rec.stories.english_plots import PLOTS
from mm_rec.stories.english_questions import FACT_GROUPS, FAMILIES
from mm_rec.stories.english_words import POOLS
from mm_rec.stories.patterns import SmallTalk, StoryLanguage, Tale


def capitalise(sentence: str) -> str:
    """Return `sentence` with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]


_TALES = (
    Tale(
        {"animal": "animal", "place": "place", "thing": "thing", "colour": "colour"},
        (
            "Tell me a short story about {animal.a}.",
            "Can you tell me a story about {animal.a}?",
            "I want a story about {animal.a}.",
        ),
        (
            "One day a little {animal} found {colour.a} {thing} {place.at} and was very happy.",
            "Once upon a time a little {animal} went {place.to} and played with {colour.a} {thing}.",
        ),
    ),
    Tale(
        {"hero": "child", "treat": "treat", "place": "outdoor", "friend": "child"},
        (
            "Tell me a short story about {hero}.",
            "Can you tell me a story about {hero}?",
            "I want a story about {hero}.",
        ),
        (
            "One day {hero} went {place.to} and shared {treat.a} with {friend}.",
            "{hero} was sad, but then {friend} came {place.to} and they played together.",
        ),
    ),
)

_SMALL_TALK = SmallTalk(
    greetings=(
        ("Hello!", "Hello! How can I help you?"),
        ("Hi!", "Hi! What can I do for you?"),
        ("Good morning!", "Good morning! How can I help you today?"),
        ("Good evening!", "Good evening! What can I do for you?"),
        ("How are you?", "I am well, thank you. How can I help you?"),
        ("Who are you?", "I am a little language model. I tell stories and answer questions."),
    ),
    thanks=(
        ("Thank you!", "You are welcome!"),
        ("Thank you very much!", "You are welcome! Come again soon."),
        ("Thanks for your help.", "I am always happy to help."),
        ("Goodbye!", "Goodbye! See you soon."),
        ("Good night!", "Good night! Sleep well."),
    ),
    systems=("You are a kind helper.", "You are a helper for children.", "Give short and clear answers."),
)

ENGLISH = StoryLanguage(
    code="en",
    passage_label="Text:",
    question_label="Question:",
    answer_label="Answer:",
    listen="Listen:",
    agreement="Sure,",
    repeat=("What does the text say?", "Can you say that again?"),
    capitalise=capitalise,
    pools=POOLS,
    plots=PLOTS,
    families=FAMILIES,
    fact_groups=FACT_GROUPS,
    tales=_TALES,
    small_talk=_SMALL_TALK,
)
