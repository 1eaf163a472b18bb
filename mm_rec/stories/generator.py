"""Simple stories, questions with answers and small conversations in English and Turkish, made from patterns.

`stories` gives text to pre-train on, `conversations` messages to fine-tune on.

This is the text behind `make quickstart`: a model of one million parameters learns it in minutes, and
`held_out_questions` then measures exactly what it learnt. What is held out is a property of the text and
never chance: of passages, one combination of family and words in twenty, by a stable hash, with all its
phrasings; of the phrasings of each world fact, one.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.stories.english import english
from mm_rec.stories.patterns import (
    FactGroup,
    Family,
    LanguageCode,
    Pools,
    QuestionPattern,
    Roles,
    StoryLanguage,
    Word,
)
from mm_rec.stories.turkish import turkish

STORY_SHARE = 0.3
QUESTION_SHARE = 0.4
FACT_SHARE = 0.75
"""Share of world facts among questions; the rest are about a passage."""

REPEAT_SHARE = 0.5
"""Share of passages that are first asked for word for word: the densest lesson in copying from the context."""

HELD_OUT_ONE_IN = 20
"""One combination of a passage's words in this many is never written by `stories`."""

GREETING_SHARE = 0.3
THANKS_SHARE = 0.3
SYSTEM_SHARE = 0.05
TALE_SHARE = 0.2
"""Shares of conversations with an opening greeting, closing thanks, a system message, a tale asked for."""

MAX_EXCHANGES = 3
"""Requests with their replies in one conversation, at most."""

END_OF_TEXT = "<|endoftext|>"

Cast = dict[str, Word]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Story:
    """One document of training text; a conversation ends with a newline, the other kinds do not."""

    text: str
    language: LanguageCode
    kind: Literal["story", "question", "chat"]


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A held-out question: the right continuation of `prompt`, up to a newline or the end, is `answer`."""

    prompt: str
    answer: str
    language: LanguageCode
    kind: Literal["question", "chat"]
    messages: tuple[ChatMessage, ...] = ()
    """Of a chat: what `prompt` says, as messages."""


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A passage ("" for a world fact) with one question about it and its answer in the two lengths."""

    passage: str
    question: str
    short: str
    full: str


def languages() -> tuple[StoryLanguage, StoryLanguage]:
    """Return English and Turkish; their files are read at the first call."""
    return english(), turkish()


def stories(seed: int, count: int) -> Iterator[Story]:
    """Yield `count` documents, the same for the same seed; fewer of them are a prefix of more.

    Of the documents 30 % are stories, 40 % questions and 30 % conversations, half of each in either language.
    """
    rng = random.Random(f"stories {seed}")
    for _ in range(count):
        language = languages()[rng.random() < 0.5]
        share = rng.random()
        if share < STORY_SHARE:
            yield Story(_plot_text(rng, language), language.code, "story")
        elif share < STORY_SHARE + QUESTION_SHARE:
            yield Story(_question_text(rng, language), language.code, "question")
        else:
            yield Story(_chat_text(rng, language), language.code, "chat")


def conversations(seed: int, count: int) -> Iterator[Conversation]:
    """Yield `count` conversations of the kind that `stories` writes as text, half of them in either language."""
    rng = random.Random(f"conversations {seed}")
    for number in range(count):
        language = languages()[rng.random() < 0.5]
        metadata = {"id": f"{seed}-{number}", "language": language.code}
        yield Conversation(tuple(_chat_messages(rng, language)), metadata=metadata)


def held_out_questions(seed: int, count: int) -> list[HeldOutQuestion]:
    """Return `count` different questions that `stories` never writes for any seed.

    English and Turkish, plain and chat questions take turns, so every cell is within one of `count` / 4.
    """
    rng = random.Random(f"questions {seed}")
    questions: dict[str, HeldOutQuestion] = {}
    while len(questions) < count:
        language = languages()[len(questions) % 2]
        kind: Literal["question", "chat"] = ("question", "chat")[len(questions) // 2 % 2]
        (asked,) = _draw_asked(rng, language, held_out=True, questions=1)
        question = (
            _plain_question(asked, language) if kind == "question" else _chat_question(rng, asked, language)
        )
        questions.setdefault(question.prompt, question)
    return list(questions.values())


def _plain_question(asked: AskedQuestion, language: StoryLanguage) -> HeldOutQuestion:
    prompt = f"{_plain_lines(asked, language)}\n{language.answer_label}"
    return HeldOutQuestion(prompt, asked.short, language.code, "question")


def _chat_question(rng: random.Random, asked: AskedQuestion, language: StoryLanguage) -> HeldOutQuestion:
    messages = [*_system(rng, language), *_exchanges(_greeting(rng, language))]
    messages.append(ChatMessage("user", _chat_request(asked, language)))
    prompt = f"{_turns(messages)}<|assistant|>\n"
    return HeldOutQuestion(prompt, asked.full, language.code, "chat", tuple(messages))


def _plot_text(rng: random.Random, language: StoryLanguage) -> str:
    plot = _pick(rng, language.plots)
    cast = _draw_cast(rng, plot.roles, language.pools)
    chosen = (_pick(rng, phrasings) for phrasings in plot.steps)
    return " ".join(language.capitalise(sentence.format(**cast)) for sentence in chosen if sentence)


def _question_text(rng: random.Random, language: StoryLanguage) -> str:
    """Questions with answers, three where there are as many: about one passage, or about facts."""
    asked = _draw_asked(rng, language, held_out=False, questions=3)
    return "\n".join(f"{_plain_lines(one, language)}\n{language.answer_label} {one.short}" for one in asked)


def _plain_lines(asked: AskedQuestion, language: StoryLanguage) -> str:
    question = f"{language.question_label} {asked.question}"
    return f"{language.passage_label} {asked.passage}\n{question}" if asked.passage else question


def _chat_text(rng: random.Random, language: StoryLanguage) -> str:
    return _turns(_chat_messages(rng, language))


def _chat_messages(rng: random.Random, language: StoryLanguage) -> list[ChatMessage]:
    exchanges = _greeting(rng, language)
    if rng.random() < TALE_SHARE:
        exchanges.append(_tale(rng, language))
    else:
        asked = _draw_asked(rng, language, held_out=False, questions=1 + (rng.random() < 0.5))
        exchanges += [(_chat_request(one, language), one.full) for one in asked]
    if len(exchanges) < MAX_EXCHANGES and rng.random() < THANKS_SHARE:
        exchanges.append(_pick(rng, language.small_talk.thanks))
    return [*_system(rng, language), *_exchanges(exchanges)]


def _tale(rng: random.Random, language: StoryLanguage) -> tuple[str, str]:
    tale = _pick(rng, language.tales)
    cast = _draw_cast(rng, tale.roles, language.pools)
    request, reply = (_pick(rng, side).format(**cast) for side in (tale.requests, tale.replies))
    return language.capitalise(request), language.capitalise(reply)


def _system(rng: random.Random, language: StoryLanguage) -> list[ChatMessage]:
    if rng.random() >= SYSTEM_SHARE:
        return []
    return [ChatMessage("system", _pick(rng, language.small_talk.systems))]


def _greeting(rng: random.Random, language: StoryLanguage) -> list[tuple[str, str]]:
    return [_pick(rng, language.small_talk.greetings)] if rng.random() < GREETING_SHARE else []


def _exchanges(exchanges: list[tuple[str, str]]) -> list[ChatMessage]:
    return [
        message
        for request, reply in exchanges
        for message in (ChatMessage("user", request), ChatMessage("assistant", reply))
    ]


def _turns(messages: Sequence[ChatMessage]) -> str:
    """The messages as text, in the default chat layout."""
    return "".join(f"<|{message.role}|>\n{message.content}\n{END_OF_TEXT}\n" for message in messages)


def _chat_request(asked: AskedQuestion, language: StoryLanguage) -> str:
    return f"{language.listen} {asked.passage} {asked.question}" if asked.passage else asked.question


def _draw_asked(
    rng: random.Random, language: StoryLanguage, *, held_out: bool, questions: int
) -> list[AskedQuestion]:
    if rng.random() < FACT_SHARE:
        return [_pick(rng, _fact_questions(language.code)[held_out]) for _ in range(questions)]
    return _draw_passage(rng, language, held_out=held_out, questions=questions)


def _draw_passage(
    rng: random.Random, language: StoryLanguage, *, held_out: bool, questions: int
) -> list[AskedQuestion]:
    """Return a passage with its first question, followed by other questions about it without the passage."""
    family = _pick(rng, language.families)
    cast = _draw_cast(rng, family.roles, language.pools)
    while is_held_out(language.code, family, cast) != held_out:
        cast = _draw_cast(rng, family.roles, language.pools)
    passage = _sentences(_pick(rng, family.passages).format(**cast), language)
    asks = rng.sample(family.asks, min(questions, len(family.asks)))
    asked = [_ask(rng, ask, cast, language) for ask in asks]
    if not held_out and rng.random() < REPEAT_SHARE:
        asked[0] = AskedQuestion("", _pick(rng, language.repeat), passage, passage)
    return [replace(asked[0], passage=passage), *asked[1:]]


def _ask(rng: random.Random, ask: QuestionPattern, cast: Cast, language: StoryLanguage) -> AskedQuestion:
    question = language.capitalise(_pick(rng, ask.phrasings).format(**cast))
    return AskedQuestion("", question, ask.short.format(**cast), _reply(ask, cast, language))


def _reply(ask: QuestionPattern, cast: Mapping[str, Word], language: StoryLanguage) -> str:
    return f"{language.agreement} {ask.full.format(**cast)}"


@cache
def _fact_questions(code: LanguageCode) -> tuple[tuple[AskedQuestion, ...], tuple[AskedQuestion, ...]]:
    """Return the questions about facts: those to train on, those held out (one phrasing of every fact)."""
    language = next(language for language in languages() if language.code == code)
    parts: tuple[list[AskedQuestion], list[AskedQuestion]] = ([], [])
    for group in language.fact_groups:
        for position, fact in enumerate(group.facts):
            full = _reply(group.ask, fact, language)
            out = held_out_phrasing(group, position)
            for number, phrasing in enumerate(group.ask.phrasings):
                question = language.capitalise(phrasing.format(**fact))
                parts[number == out].append(AskedQuestion("", question, group.ask.short.format(**fact), full))
    return tuple(parts[0]), tuple(parts[1])


def is_held_out(code: LanguageCode, family: Family, cast: Mapping[str, Word]) -> bool:
    """Tell whether a passage of `family` with these words is kept for `held_out_questions`."""
    return _stable_hash(code, family.name, *cast.values()) % HELD_OUT_ONE_IN == 0


def held_out_phrasing(group: FactGroup, position: int) -> int:
    """Return the index of the phrasing that the fact at `position` is never asked with by `stories`.

    The phrasings take turns, so each of them is seen with most facts of the group.
    """
    return position % len(group.ask.phrasings)


def _stable_hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def _draw_cast(rng: random.Random, roles: Roles, pools: Pools) -> Cast:
    """Draw a word for each role, all of them different."""
    cast: Cast = {}
    for role, pool in roles.items():
        word = _pick(rng, pools[pool])
        while word in cast.values():
            word = _pick(rng, pools[pool])
        cast[role] = word
    return cast


def _sentences(text: str, language: StoryLanguage) -> str:
    """Return `text` with the first letter of each of its sentences in upper case."""
    return ". ".join(language.capitalise(sentence) for sentence in text.split(". "))


def _pick(rng: random.Random, choices: Sequence[T]) -> T:
    """Draw one of `choices`, three times as fast as `rng.choice`."""
    return choices[int(rng.random() * len(choices))]
