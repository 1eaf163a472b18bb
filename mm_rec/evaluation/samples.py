"""Sample texts of a model, and measures of their diversity."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mm_rec.evaluation.text_metrics import distinct
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt, generate_text
from mm_rec.inference.sampler import SamplingParams
from mm_rec.text.words import guess_language, lower, words

DEFAULT_PROMPTS = ("Once upon a time", "The history of", "Bir zamanlar", "Türkiye'de")


@dataclass(frozen=True, slots=True)
class DiversityMetrics:
    """Diversity of a text, over its words in small letters.

    `distinct_n` is the share of different ones among its n-grams (Li et al. 2016), `repeated_4grams` the share of
    4-grams that came before, `longest_repeat` the words of the longest passage that occurs again (the two may overlap).
    """

    words: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repeated_4grams: float
    longest_repeat: int


@dataclass(frozen=True, slots=True)
class GeneratedSample:
    """One continuation of a prompt; `ended` where the model ended it by itself, or at a stop string."""

    prompt: str
    text: str
    tokens: int
    seconds: float
    ended: bool
    measures: DiversityMetrics


def generate_samples(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str], sampling: SamplingParams
) -> Iterator[GeneratedSample]:
    """Continue each prompt, one after the other, each as if it were the only one."""
    for prompt in prompts:
        session = engine.session()
        session.prefill(encode_prompt(tokenizer, prompt))
        before, started = session.length, time.perf_counter()
        text = "".join(generate_text(session, tokenizer, sampling))
        yield GeneratedSample(
            prompt=prompt,
            text=text,
            tokens=session.length - before,
            seconds=time.perf_counter() - started,
            ended=session.ended,
            measures=measure_diversity(text),
        )


def measure_diversity(text: str, language: str | None = None) -> DiversityMetrics:
    """Measure the diversity of a text; its language decides what small letters are (guessed where not given)."""
    found = words(lower(text, language or guess_language(text)))
    return DiversityMetrics(
        words=len(found),
        distinct_1=distinct([found], 1),
        distinct_2=distinct([found], 2),
        distinct_3=distinct([found], 3),
        repeated_4grams=1 - distinct([found], 4),
        longest_repeat=_longest_repeat(found),
    )


def _longest_repeat(found: list[str]) -> int:
    """Words of the longest passage that occurs twice, by bisection: every part of one that does, does too."""
    shortest, longest = 0, max(0, len(found) - 1)
    while shortest < longest:
        size = (shortest + longest + 1) // 2
        if distinct([found], size) < 1:
            shortest = size
        else:
            longest = size - 1
    return shortest
