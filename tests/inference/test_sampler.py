"""Sampling: each option against probabilities worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference.sampler import Sampler, SamplingParams, candidates

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
    ids, probabilities = candidates(LOGITS, SamplingParams(**{**EVERYTHING, **options}))
    assert ids.tolist() == list(expected)
    assert probabilities.tolist() == pytest.approx(list(expected.values()), abs=1e-6)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    counts = drawn(logits, SamplingParams(**EVERYTHING, repetition_penalty=2.0, seed=2), 5000, read=[0, 1, 1])
    weights = [math.exp(1.0), math.exp(-2.0), math.exp(0.5)]
    assert_follow(counts, [weight / sum(weights) for weight in weights])


def test_biases_and_penalties_by_hand() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0])
    greedy = {"temperature": 0}

    def written(sampler: Sampler, tokens: int) -> list[int]:
        found: list[int] = []
        for _ in range(tokens):
            found.append(sampler.sample(logits))
            sampler.record(found[-1])
        return found

    # 2.0, 1.6, then 1.2 against 1.5, then 1.2 against 1.1, 1.0 against 1.1, …
    assert written(Sampler(SamplingParams(**greedy, frequency_penalty=0.4)), 5) == [0, 0, 1, 0, 1]
    # 0.8, 0.3 and −0.2 from then on
    assert written(Sampler(SamplingParams(**greedy, presence_penalty=1.2)), 4) == [0, 1, 2, 0]
    # What was read does not count.
    assert written(Sampler(SamplingParams(**greedy, presence_penalty=-2.0), recent=[3] * 9), 2) == [0, 0]
    assert Sampler(SamplingParams(**greedy, logit_bias={3: 2.5})).sample(logits) == 3
    assert Sampler(SamplingParams(temperature=5.0, logit_bias={2: 100.0}, seed=0)).sample(logits) == 2
    never = Sampler(SamplingParams(**EVERYTHING, logit_bias={0: -100.0, 1: -100.0}, seed=0))
    assert {never.sample(logits) for _ in range(100)} == {2, 3}


def test_penalty_counts_for_greedy_too() -> None:
    greedy = SamplingParams(temperature=0, repetition_penalty=3.0)
    logits = torch.tensor([2.0, 1.0])
    assert Sampler(greedy).sample(logits) == 0
    assert Sampler(greedy, [0]).sample(logits) == 1


def drawn(
    logits: torch.Tensor, sampling: SamplingParams, draws: int, read: list[int] | None = None
) -> list[float]:
    """How often each token is drawn, as a share."""
    counts = [0] * len(logits)
    for seed in range(draws):
        counts[Sampler(sampling.replace(seed=seed), read or []).sample(logits)] += 1
    return [count / draws for count in counts]


def assert_follow(shares: list[float], probabilities: list[float], draws: int = 5000) -> None:
    for share, probability in zip(shares, probabilities, strict=True):
        assert abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / draws)


def test_frequencies_follow_the_probabilities() -> None:
    for options in ({}, {"top_k": 4}, {"min_p": 1e-9}):  # the short way, and through the candidates
        assert_follow(drawn(LOGITS, SamplingParams(**EVERYTHING, **options), 5000), PROBABILITIES)
    choices, counts = Sampler(SamplingParams(**EVERYTHING, seed=1)), [0] * 4
    for _ in range(5000):
        counts[choices.sample(LOGITS)] += 1
    assert_follow([count / 5000 for count in counts], PROBABILITIES)


def test_few_candidates_are_those_of_the_whole_order() -> None:
    """Of a vocabulary larger than what is looked at first: a flat one, of which all are needed, and a steep one."""
    for width in (1e-3, 3.0):
        logits = width * torch.randn(2000, generator=torch.Generator().manual_seed(0))
        ids, probabilities = candidates(logits, SamplingParams(temperature=1.0, top_p=0.9))
        whole, order = logits.double().softmax(0).sort(descending=True)
        count = int((whole.cumsum(0) - whole < 0.9).sum())
        assert ids.tolist() == order[:count].tolist()
        torch.testing.assert_close(
            probabilities.double(), whole[:count] / whole[:count].sum(), rtol=1e-4, atol=1e-7
        )


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def draw(sampling: SamplingParams) -> list[int]:
        choices = Sampler(sampling)
        return [choices.sample(LOGITS) for _ in range(60)]

    assert draw(SamplingParams(seed=7)) == draw(SamplingParams(seed=7)) != draw(SamplingParams(seed=8))
    assert draw(SamplingParams()) != draw(SamplingParams())


def test_sampling_changes_neither_logits_nor_torchs_own_state() -> None:
    logits, state = LOGITS.clone(), torch.get_rng_state()
    sampling = SamplingParams(
        repetition_penalty=1.5, top_k=2, logit_bias={0: 3.0}, frequency_penalty=1.0, seed=0
    )
    Sampler(sampling, [1]).sample(logits)
    assert torch.equal(logits, LOGITS)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_temperature_is_greedy_and_huge_is_even() -> None:
    ids, probabilities = candidates(LOGITS * 1e4, SamplingParams(temperature=1e-30))
    assert (ids.tolist(), probabilities.tolist()) == ([1], [1.0])
    _, probabilities = candidates(LOGITS, SamplingParams(temperature=100, top_p=1))
    assert probabilities.tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_tokens_ruled_out_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 1.0, -math.inf])
    sampling = SamplingParams(**EVERYTHING, seed=0)
    assert Sampler(sampling).sample(logits) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers(value: float, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        Sampler(sampling).sample(torch.tensor([0.0, value]))


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
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("logit_bias", {1: 101}),
        ("max_new_tokens", 0),
        ("stop", ("",)),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"mmrec chat: {name}"):
        SamplingParams.read({name: value}, where="mmrec chat")
