"""Read the words, plots, passages, facts and small talk of the story generator.

They stand in YAML files in `en/` and `tr/`, which say in their first lines how they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mm_rec.stories.patterns import (
    FactGroup,
    Family,
    Grammar,
    LanguageCode,
    Plot,
    Pools,
    QuestionPattern,
    SmallTalk,
    StoryLanguage,
    Tale,
    Word,
)

SUMMANDS = range(5)
"""Positions in the pool `counting` of the numbers that are added up: one to five."""


def load_language(code: LanguageCode, grammar: Grammar) -> StoryLanguage:
    """Return the language of a folder of files."""
    pools = _read_pools(read_file(code, "words"), grammar)
    chat = read_file(code, "chat")
    labels = ("passage_label", "question_label", "answer_label", "listen", "agreement")
    return StoryLanguage(
        code=code,
        **{label: chat[label] for label in labels},
        repeat=_phrasings(chat["repeat"]),
        capitalise=grammar.capitalise,
        pools=pools,
        plots=tuple(
            Plot(name, plot["roles"], tuple(map(_phrasings, plot["steps"])))
            for name, plot in read_file(code, "plots").items()
        ),
        families=tuple(
            Family(
                name, family["roles"], _phrasings(family["passages"]), tuple(map(_question, family["asks"]))
            )
            for name, family in read_file(code, "passages").items()
        ),
        fact_groups=tuple(
            FactGroup(name, _question(group), tuple(_facts(name, group, pools, grammar)))
            for name, group in read_file(code, "facts").items()
        ),
        tales=tuple(
            Tale(tale["roles"], _phrasings(tale["requests"]), _phrasings(tale["replies"]))
            for tale in chat["tales"]
        ),
        small_talk=SmallTalk(
            tuple(chat["greetings"].items()), tuple(chat["thanks"].items()), _phrasings(chat["systems"])
        ),
    )


def read_file(code: LanguageCode, kind: str) -> Any:
    """Return what a file of a language holds.

    By libyaml where PyYAML has it: all ten files take 7 ms, and 70 ms by the strict loader, with which a test reads
    them instead, so that no key stands twice.
    """
    text = (Path(__file__).parent / code / f"{kind}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _read_pools(groups_of: Mapping[str, Sequence[Mapping[str, Any]]], grammar: Grammar) -> Pools:
    pools: dict[str, tuple[Word, ...]] = {}
    for pool, groups in groups_of.items():
        words: list[Word] = []
        for group in groups:
            ((kind, listed),) = group.items()
            if kind == "pool":
                words += pools[listed]
            else:
                words += map(grammar.kinds[kind], listed.split() if isinstance(listed, str) else listed)
        pools[pool] = tuple(words)
    return pools


def _phrasings(block: str) -> tuple[str, ...]:
    """The lines of a block; the line "-" is the phrasing that says nothing."""
    return tuple("" if line == "-" else line for line in block.splitlines())


def _question(values: Mapping[str, Any]) -> QuestionPattern:
    return QuestionPattern(_phrasings(values["phrasings"]), values["short"], values["full"])


def _facts(
    name: str, group: Mapping[str, Any], pools: Pools, grammar: Grammar
) -> Iterable[Mapping[str, Word]]:
    """The facts of a group, listed in its file or counted from the words."""
    numbers, days = pools["counting"], pools["day"]
    listed: list[tuple[Word, ...]] = [
        tuple(map(grammar.fact_word, pair)) for pair in group.get("facts", {}).items()
    ]
    rows: Iterable[tuple[Word, ...]]
    match name:
        case "opposite":
            rows = [row for left, right in listed for row in ((left, right), (right, left))]
        case "day_after":
            rows = [(day, days[(place + 1) % len(days)]) for place, day in enumerate(days)]
        case "day_before":
            rows = [(days[(place + 1) % len(days)], day) for place, day in enumerate(days)]
        case "number_after":
            rows = pairwise(numbers)
        case "sum":
            rows = [(numbers[a], numbers[a + b + 1], numbers[b]) for a in SUMMANDS for b in SUMMANDS]
        case _:
            rows = listed
    return (dict(zip("xyz", row, strict=False)) for row in rows)
