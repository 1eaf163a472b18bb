"""Examples in list format: some words, and a sentence for each, drawn so that all are used evenly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mm_rec.data.split import document_hash
from mm_rec.errors import ConfigError, DataError
from mm_rec.stories.wordlists.entries import WordEntry
from mm_rec.text.words import lower

HELD_OUT = 0.1  # of the words, where nothing else is asked for
_SHARE = re.compile(r"\s*(\d+)(?:-(\d+))?\s*=\s*(\d+(?:\.\d+)?)\s*")

Shares = Mapping[tuple[int, ...], float]
# How much of the examples has so many words; the numbers of a group have equal parts of its share.
SHARES: Shares = {(10,): 0.7, (8, 9): 0.2, (6, 7): 0.1}


@dataclass(frozen=True, slots=True)
class ListExample:
    """Words, and a sentence for each of them, in the same order."""

    words: tuple[str, ...]
    sentences: tuple[str, ...]


def is_held_out_word(word: str, fraction: float) -> bool:
    """Return True if a word is held out for evaluation: a pure function of its letters, whatever their case and dots.

    A word that is held out at a fraction is held out at every larger one.
    """
    return document_hash(lower(word).replace("ı", "i")) < fraction


def split_entries(entries: Sequence[WordEntry], fraction: float) -> tuple[list[WordEntry], list[WordEntry]]:
    """The entries to learn from, and those whose words are held out; ConfigError for a fraction not in [0, 1)."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"--held-out is {fraction}; it is from 0 (nothing) to below 1, for example 0.1")
    held = [is_held_out_word(entry.word, fraction) for entry in entries]
    pairs = list(zip(entries, held, strict=True))
    return [entry for entry, out in pairs if not out], [entry for entry, out in pairs if out]


def make_examples(
    entries: Sequence[WordEntry],
    count: int = 2000,
    seed: int = 42,
    shares: Shares = SHARES,
    language: str = "en",
) -> list[ListExample]:
    """Make examples from entries: each word as often as every other or once more, its sentences in turn.

    Entries whose words differ only by capitals (of the language) are one word. Raises DataError where there are fewer
    words than the longest example has.
    """
    sentences: dict[str, list[WordEntry]] = {}
    for entry in entries:
        sentences.setdefault(lower(entry.word, language), []).append(entry)
    used = dict.fromkeys(sentences, 0)
    examples = []
    for keys in draw_words(list(sentences), count, seed, shares):
        chosen = []
        for key in keys:
            chosen.append(sentences[key][used[key] % len(sentences[key])])
            used[key] += 1
        examples.append(
            ListExample(tuple(entry.word for entry in chosen), tuple(entry.sentence for entry in chosen))
        )
    return examples


def draw_words(
    words: Sequence[str], count: int, seed: int = 42, shares: Shares = SHARES
) -> list[tuple[str, ...]]:
    """Draw lists of different words, of sizes in the given shares, each word as often as every other or once more.

    The words are dealt out in one random order after another; a word that its list has already, where two orders meet,
    waits for the next list. The same seed gives the same lists everywhere. Raises DataError for too few words.
    """
    sizes = _sizes(count, shares)
    needed = max(sizes, default=0)
    if len(words) < needed:
        raise DataError(
            f"an example has up to {needed} different words and there are {len(words)}. "
            "Give more words, or hold out fewer of them"
        )
    waiting: list[int] = []
    orders = 0
    drawn = []
    for place in _order(len(sizes), seed, 0):
        chosen: list[int] = []
        while len(chosen) < sizes[place]:
            following = next((word for word in waiting if word not in chosen), None)
            if following is None:
                orders += 1
                waiting += _order(len(words), seed, orders)
            else:
                waiting.remove(following)
                chosen.append(following)
        drawn.append(tuple(words[index] for index in chosen))
    return drawn


def parse_shares(text: str) -> dict[tuple[int, ...], float]:
    """Shares from text: "10=70, 8-9=20, 6-7=10", numbers of words and how much of the examples has them."""
    shares: dict[tuple[int, ...], float] = {}
    for part in text.split(","):
        match = _SHARE.fullmatch(part)
        if match is None or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"--shares {part.strip()!r}: write it as WORDS=SHARE, for example 10=70,8-9=20,6-7=10"
            )
        shares[tuple(range(int(match[1]), int(match[2] or match[1]) + 1))] = float(match[3])
    total = sum(shares.values())
    if not any(math.isclose(total, whole, rel_tol=0.01) for whole in (1, 100)):
        raise ConfigError(f"--shares {text!r}: these come to {total:g}. Shares are parts of 100, or of 1")
    return shares


def _sizes(count: int, shares: Shares) -> list[int]:
    """Return how many words each of `count` examples has, sorted; as near to the shares as whole numbers come."""
    if count < 1:
        raise ConfigError(f"the number of examples is {count}; it must be 1 or more")
    sizes = []
    for group, examples in zip(shares, _apportion(count, list(shares.values())), strict=True):
        for size, part in zip(group, _apportion(examples, [1.0] * len(group)), strict=True):
            sizes += [size] * part
    return sizes


def _apportion(count: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `count`, in proportion to weights, by the largest remainder (the earlier if equal)."""
    exact = [count * weight / sum(weights) for weight in weights]
    parts = [int(number + 1e-9) for number in exact]  # 0.7 · 2000 may come out a little below 1400
    by_remainder = sorted(range(len(parts)), key=lambda place: parts[place] - exact[place])
    for place in by_remainder[: count - sum(parts)]:
        parts[place] += 1
    return parts


def _order(size: int, seed: int, number: int) -> list[int]:
    """The seed's random order of `size` things with this number."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"the seed is {seed}; it must be from 0 to 2^64 − 1")
    # Raw words and a stable sort: numpy promises that these never change, not so for `permutation`.
    random = np.random.Philox(key=np.array([seed, number], dtype=np.uint64))
    order: list[int] = np.argsort(random.random_raw(size), kind="stable").tolist()
    return order
