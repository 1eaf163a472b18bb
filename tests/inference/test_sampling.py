"""Sampling: each option against probabilities worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference.sampling import Sampling, candidates, sample

PROBABILITIES = [0.1, 0.4, 0.2, 0.3]
LOGITS = torch.tensor(PROBABILITIES).log() + 5
EVERYTHING = {"temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {1: 0.4, 3: 0.3, 2: 0.2, 0: 0.1}),
        ({"top_k": 2}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_k": 1}, {1: 1.0}),
        ({"top_k": 99}, {1: 0.4, 3: 0.3, 2: 0.2, 0: 0.1}),
        ({"top_p": 0.5}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_p": 0.39}, {1: 1.0}),
        ({"top_p": 1e-12}, {1: 1.0}),
        ({"min_p": 0.6}, {1: 4 / 7, 3: 3 / 7}),
        ({"min_p": 0.3}, {1: 4 / 9, 3: 3 / 9, 2: 2 / 9}),
        ({"temperature": 0.5}, {1: 16 / 30, 3: 9 / 30, 2: 4 / 30, 0: 1 / 30}),
        ({"top_k": 3, "top_p": 0.6}, {1: 4 / 7, 3: 3 / 7}),  # of what top-k left, 4/9 + 3/9 reach 0.6
        ({"temperature": 0.5, "min_p": 0.5}, {1: 16 / 25, 3: 9 / 25}),
    ],
)
def test_candidates_by_hand(options: dict[str, Any], expected: dict[int, float]) -> None:
    ids, probabilities = candidates(LOGITS, Sampling(**{**EVERYTHING, **options}))
    assert ids.tolist() == list(expected)
    assert probabilities.tolist() == pytest.approx(list(expected.values()), abs=1e-6)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    ids, probabilities = candidates(logits, Sampling(**EVERYTHING, repetition_penalty=2.0), [0, 1, 1])
    weights = {0: math.exp(1.0), 2: math.exp(0.5), 1: math.exp(-2.0)}
    assert ids.tolist() == list(weights)
    assert probabilities.tolist() == pytest.approx([w / sum(weights.values()) for w in weights.values()])


def test_penalty_counts_for_greedy_too() -> None:
    greedy = Sampling(temperature=0, repetition_penalty=3.0)
    logits = torch.tensor([2.0, 1.0])
    assert sample(logits, greedy.generator(), greedy) == 0
    assert sample(logits, greedy.generator(), greedy, [0]) == 1


def test_frequencies_follow_the_probabilities() -> None:
    sampling = Sampling(**EVERYTHING, seed=1)
    generator, draws = sampling.generator(), 5000
    counts = [0] * 4
    for _ in range(draws):
        counts[sample(LOGITS, generator, sampling)] += 1
    for count, probability in zip(counts, PROBABILITIES, strict=True):
        assert abs(count / draws - probability) < 5 * math.sqrt(probability * (1 - probability) / draws)


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def draw(sampling: Sampling) -> list[int]:
        generator = sampling.generator()
        return [sample(LOGITS, generator, sampling) for _ in range(60)]

    assert draw(Sampling(seed=7)) == draw(Sampling(seed=7)) != draw(Sampling(seed=8))
    assert draw(Sampling()) != draw(Sampling())


def test_sampling_changes_neither_logits_nor_torchs_own_state() -> None:
    logits, state = LOGITS.clone(), torch.get_rng_state()
    sampling = Sampling(repetition_penalty=1.5, top_k=2, seed=0)
    sample(logits, sampling.generator(), sampling, [1])
    assert torch.equal(logits, LOGITS)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_temperature_is_greedy_and_huge_is_even() -> None:
    ids, probabilities = candidates(LOGITS * 1e4, Sampling(temperature=1e-30))
    assert (ids.tolist(), probabilities.tolist()) == ([1], [1.0])
    _, probabilities = candidates(LOGITS, Sampling(temperature=100, top_p=1))
    assert probabilities.tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_tokens_ruled_out_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 1.0, -math.inf])
    sampling = Sampling(**EVERYTHING, seed=0)
    assert sample(logits, sampling.generator(), sampling) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers(value: float, temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        sample(torch.tensor([0.0, value]), sampling.generator(), sampling)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("stop", ("",)),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"mmrec chat: {name}"):
        Sampling.read({name: value}, where="mmrec chat")
