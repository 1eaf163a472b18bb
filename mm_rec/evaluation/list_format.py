"""Scores of list-format answers: numbered sentences, each with its word, at their level, and none of them memorised.

The rules, each scored for every word of a prompt and for every answer as a whole:

numbered  the numbered lines have the numbers 1, 2, 3 … in order
counted   there are as many numbered lines as words, each of one sentence, and no other text
used      the line with a word's number has the word in some form (text/inflection.py)
level     no word of the sentence stands in the level lists above the level; the asked word itself may
known     every word stands in the lists, but for numbers and names (text/cefr.py)
length    the sentence has at least and at most so many words (LENGTHS)
original  the sentence is none of the training sentences, compared by their words in small letters

A sentence that is missing fails every rule. An answer is obedient where "numbered", "counted" and "used" hold
throughout, a sentence where it has its number, is one, and has its word. "level" and "known" are scored where level
lists are given, "original" where training sentences are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_rec.stories.wordlists.examples import SHARES, Shares, draw_words
from mm_rec.stories.wordlists.prompts import prompt
from mm_rec.text.cefr import LevelCheck, WordLevels, require_cefr_level
from mm_rec.text.inflection import WordIndex
from mm_rec.text.sentences import count_sentences
from mm_rec.text.words import lower, words

BATCH = 32  # prompts
RULES = ("numbered", "counted", "used", "level", "known", "length", "original")
OBEDIENCE = ("numbered", "counted", "used")
MAX_FAILURES_SHOWN = 3  # failures of a rule
_FREQUENT = 20  # words above the level, or unknown, that the report names

# Words of a sentence: the most are the 95th percentile of the sentences that CEFR-SP's annotators agreed on (Arase et
# al. 2022, Wiki-Auto part; its 33 sentences of C2 are too few, so C2 has C1's).
LENGTHS = {"A1": (2, 13), "A2": (2, 17), "B1": (2, 23), "B2": (2, 26), "C1": (2, 28), "C2": (2, 28)}
_SHORTEST = {"tr": 1}  # "Listedeyim." is a sentence

_ITEM = re.compile(r"\s*(\d{1,3})[.)](?!\d)\s*(.*?)\s*")

AnswerFunction = Callable[[list[str]], list[str]]
ListProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ListPrompt:
    """The words that sentences are asked for, and the prompt that asks."""

    words: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class ListRules:
    """Settings of the rules (see the module); `training` has sentences after `normalise_sentence`."""

    language: str
    level: str
    lengths: tuple[int, int]
    levels: WordLevels | None
    training: frozenset[str]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The sentence for one word ("" where there is none), what each rule says of it, and the words above or unknown."""

    word: str
    sentence: str
    rules: Mapping[str, bool]
    check: LevelCheck

    @property
    def obedient(self) -> bool:
        """Return whether the sentence has its number, is one, and has its word."""
        return all(self.rules[rule] for rule in OBEDIENCE)


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Scores of an answer: whether it is numbered and counted as a whole, and of each word's sentence, in order."""

    numbered: bool
    counted: bool
    items: tuple[ItemScore, ...]

    @property
    def obedient(self) -> bool:
        """Return whether numbers, count and words are right throughout."""
        return all(self.rules[rule] for rule in OBEDIENCE)

    @property
    def rules(self) -> dict[str, bool]:
        """Return for each rule whether it holds throughout the answer."""
        names = self.items[0].rules
        throughout = {name: all(item.rules[name] for item in self.items) for name in names}
        return {**throughout, "numbered": self.numbered, "counted": self.counted}


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A prompt, what was answered, and its score."""

    prompt: ListPrompt
    answer: str
    score: AnswerScore


@dataclass(frozen=True, slots=True)
class ListFormatReport:
    """All answers with their scores, and the aggregated figures."""

    level: str
    language: str
    scored: tuple[ScoredAnswer, ...]

    @property
    def obedience(self) -> float:
        """Return the share of answers whose numbers, count and words are right."""
        return _share([one.score.obedient for one in self.scored])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values: figures, failures by rule, each answer with the rules that it breaks."""
        by_size: dict[int, list[ScoredAnswer]] = {}
        for one in self.scored:
            by_size.setdefault(len(one.prompt.words), []).append(one)
        checks = [item.check for one in self.scored for item in one.score.items]
        return {
            "level": self.level,
            "language": self.language,
            **_figures(self.scored),
            "by_words": {str(size): _figures(by_size[size]) for size in sorted(by_size)},
            "words_above": dict(
                Counter(word for check in checks for word in check.above).most_common(_FREQUENT)
            ),
            "unknown_words": dict(
                Counter(word for check in checks for word in check.unknown).most_common(_FREQUENT)
            ),
            "failures": {rule: failed for rule in RULES if (failed := self.failures(rule))},
            "scored": [
                {
                    "words": list(one.prompt.words),
                    "answer": one.answer,
                    "broken": [rule for rule, holds in one.score.rules.items() if not holds],
                }
                for one in self.scored
            ],
        }

    def failures(self, rule: str, most: int = MAX_FAILURES_SHOWN) -> list[dict[str, Any]]:
        """Return the first answers that break a rule: prompt, answer, and the words whose sentences do ("at")."""
        broken = [one for one in self.scored if not one.score.rules.get(rule, True)]
        return [
            {
                "prompt": one.prompt.text,
                "answer": one.answer,
                "at": [item.word for item in one.score.items if not item.rules[rule]],
            }
            for one in broken[:most]
        ]

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        report = self.to_dict()
        obedience = report["obedience"]
        lines = [
            f"{report['answers']:,} answers, {report['sentences']:,} sentences ({self.level})",
            f"obedience (numbers, count, words): {obedience['answers']:.1%} of the answers, "
            f"{obedience['sentences']:.1%} of the sentences",
            f"{'rule':<10} {'answers':>8} {'sentences':>10}",
        ]
        lines += [
            f"{rule:<10} {share['answers']:>8.1%} {share['sentences']:>10.1%}"
            for rule, share in report["rules"].items()
        ]
        lines += [
            f"{size:>2} words: {part['answers']:,} answers, obedience {part['obedience']['answers']:.1%}"
            for size, part in report["by_words"].items()
        ]
        for title, name in (("above the level", "words_above"), ("on no list", "unknown_words")):
            if report[name]:
                lines.append(
                    f"{title}: {', '.join(f'{word} {count}' for word, count in report[name].items())}"
                )
        for rule, failures in report["failures"].items():
            shown = failures[0]["answer"].strip().splitlines() or ["(nothing)"]
            lines += [f"breaks {rule!r} at {', '.join(failures[0]['at']) or 'the whole'}:"]
            lines += [f"    {line}" for line in shown]
        return lines


def _figures(scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """Count answers and sentences; the shares of them that are obedient, and that keep each rule."""
    scores = [one.score for one in scored]
    items = [item for score in scores for item in score.items]
    rules = [rule for rule in RULES if items and rule in items[0].rules]
    return {
        "answers": len(scores),
        "sentences": len(items),
        "obedience": {
            "answers": _share([score.obedient for score in scores]),
            "sentences": _share([item.obedient for item in items]),
        },
        "rules": {
            rule: {
                "answers": _share([score.rules[rule] for score in scores]),
                "sentences": _share([item.rules[rule] for item in items]),
            }
            for rule in rules
        },
    }


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def make_list_rules(
    level: str = "A1",
    language: str = "en",
    *,
    levels: Mapping[str, str] | None = None,
    training: Iterable[str] = (),
    lengths: tuple[int, int] | None = None,
) -> ListRules:
    """Build the rules for a level and a language; `levels` are from `read_levels`, `training` plain sentences."""
    level = require_cefr_level(level)
    shortest, longest = LENGTHS[level]
    return ListRules(
        language,
        level,
        lengths or (_SHORTEST.get(language, shortest), longest),
        WordLevels(levels, language) if levels else None,
        frozenset(normalise_sentence(sentence, language) for sentence in training),
    )


def list_prompts(
    words: Sequence[str],
    count: int = 200,
    seed: int = 42,
    *,
    shares: Shares = SHARES,
    level: str = "A1",
    template: str | None = None,
) -> list[ListPrompt]:
    """Draw prompts for some words as the training examples are drawn; raises DataError where the words are too few."""
    drawn = draw_words(list(dict.fromkeys(words)), count, seed, shares)
    return [ListPrompt(chosen, prompt(chosen, level, template)) for chosen in drawn]


def evaluate_list_format(
    answer: AnswerFunction,
    prompts: Sequence[ListPrompt],
    rules: ListRules,
    batch: int = BATCH,
    progress: ListProgress | None = None,
) -> ListFormatReport:
    """Have prompts answered, `batch` at a time, and score the answers; `progress` is told prompts done and all."""
    scored: list[ScoredAnswer] = []
    for first in range(0, len(prompts), batch):
        asked = prompts[first : first + batch]
        for one, text in zip(asked, answer([one.text for one in asked]), strict=True):
            scored.append(ScoredAnswer(one, text, score_answer(text, one.words, rules)))
        if progress is not None:
            progress(len(scored), len(prompts))
    return ListFormatReport(rules.level, rules.language, tuple(scored))


def score_answer(answer: str, words: Sequence[str], rules: ListRules) -> AnswerScore:
    """Score one answer to a prompt for `words`, at least one."""
    lines = [line for line in answer.splitlines() if line.strip()]
    matches = [_ITEM.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in matches if match]
    by_number: dict[int, str] = {}
    for match in matches:
        if match:
            by_number.setdefault(int(match[1]), match[2])
    items = tuple(
        _score_item(by_number.get(place, ""), word, rules) for place, word in enumerate(words, start=1)
    )
    return AnswerScore(
        numbered=bool(numbers) and numbers == list(range(1, len(numbers) + 1)),
        counted=all(matches) and len(numbers) == len(words) and all(item.rules["counted"] for item in items),
        items=items,
    )


def normalise_sentence(sentence: str, language: str) -> str:
    """Return a sentence's words in small letters, joined by spaces, for comparison with others."""
    return lower(" ".join(words(sentence)), language)


def _score_item(sentence: str, word: str, rules: ListRules) -> ItemScore:
    cover = WordIndex([word], rules.language).match_tokens(sentence)
    held = {token for token, entries in cover if entries}
    shortest, longest = rules.lengths
    there = bool(sentence)
    # Sentences are split by the English rules where there are none of the language.
    splitting = rules.language if rules.language in ("en", "tr") else "en"
    scores = {
        "numbered": there,
        "counted": there and count_sentences(sentence, splitting) == 1,
        "used": bool(held),
        "length": shortest <= len(cover) <= longest,
    }
    check = LevelCheck((), ())
    if rules.levels is not None:
        check = rules.levels.check(sentence, rules.level, allowed=held)
        scores |= {"level": there and not check.above, "known": there and not check.unknown}
    if rules.training:
        scores["original"] = there and normalise_sentence(sentence, rules.language) not in rules.training
    return ItemScore(word, sentence, scores, check)
