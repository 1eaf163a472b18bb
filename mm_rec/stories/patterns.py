"""The parts of a language for the story generator: words with their forms, and patterns over them.

A pattern is a `str.format` string over roles: with `hero` drawn from the pool of children,
`{hero}` is the name and `{hero.his}` one of its forms. A first letter is capitalised by the generator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

LanguageCode = Literal["en", "tr"]


class Word(str):
    """A word in its plain form; its other forms are attributes, so that a pattern says `{word.form}`."""

    def __new__(cls, plain: str, **forms: str) -> Self:
        """Build the word `plain` with the named forms."""
        word = super().__new__(cls, plain)
        word.__dict__.update(forms)
        return word

    def form(self, name: str) -> str:
        """Return the form called `name`; an unknown one is an `AttributeError`, as in a pattern."""
        return str(getattr(self, name))


Pools = Mapping[str, tuple[Word, ...]]
"""The words of a language by pool name; `child` and `thing` are examples of pools."""

Roles = Mapping[str, str]
"""Role name to pool name; two roles of one pool always get different words."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a language does with the entries of its files: a word of each kind, one of a fact, a first letter."""

    kinds: Mapping[str, Callable[[str], Word]]
    fact_word: Callable[[str], Word]
    capitalise: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Plot:
    """The skeleton of a story: for each step several phrasings of one sentence ("" leaves the step out)."""

    name: str
    roles: Roles
    steps: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class QuestionPattern:
    """A question about a passage or a fact: its phrasings, the short answer, and the answer as a sentence."""

    phrasings: tuple[str, ...]
    short: str
    full: str


@dataclass(frozen=True, slots=True)
class Family:
    """Passages of one shape, with the questions that they answer."""

    name: str
    roles: Roles
    passages: tuple[str, ...]
    asks: tuple[QuestionPattern, ...]


@dataclass(frozen=True, slots=True)
class FactGroup:
    """World facts of one shape (each a mapping of slots) and the ways to ask for them."""

    name: str
    ask: QuestionPattern
    facts: tuple[Mapping[str, Word], ...]


@dataclass(frozen=True, slots=True)
class Tale:
    """A story of one sentence, as an assistant tells it, with the requests that call for it."""

    roles: Roles
    requests: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SmallTalk:
    """Small talk around a conversation: (user, assistant) pairs and system messages."""

    greetings: tuple[tuple[str, str], ...]
    thanks: tuple[tuple[str, str], ...]
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoryLanguage:
    """Everything that the generator needs to write in one language.

    Labels, `listen` (before a passage in a conversation) and `agreement` (before an assistant's answer) keep
    names and words from standing first in a line: there a tokenizer has other pieces for them, and copying a
    word would mean learning two pieces as one. `repeat` asks for a passage word for word.
    """

    code: LanguageCode
    passage_label: str
    question_label: str
    answer_label: str
    listen: str
    agreement: str
    repeat: tuple[str, ...]
    capitalise: Callable[[str], str]
    pools: Pools
    plots: tuple[Plot, ...]
    families: tuple[Family, ...]
    fact_groups: tuple[FactGroup, ...]
    tales: tuple[Tale, ...]
    small_talk: SmallTalk
