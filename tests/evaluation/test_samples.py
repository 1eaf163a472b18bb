"""Measures of text by hand; samples."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.evaluation.samples import DiversityMetrics, generate_samples, measure_diversity
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt
from mm_rec.inference.sampler import SamplingParams


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DiversityMetrics(0, 1.0, 1.0, 1.0, 0.0, 0)),
        ("One.", DiversityMetrics(1, 1.0, 1.0, 1.0, 0.0, 0)),
        ("The cat, the CAT", DiversityMetrics(4, 2 / 4, 2 / 3, 1.0, 0.0, 2)),
        ("a a a a a a", DiversityMetrics(6, 1 / 6, 1 / 5, 1 / 4, 2 / 3, 5)),
        ("a b c d e a b c d f", DiversityMetrics(10, 6 / 10, 6 / 9, 6 / 8, 1 / 7, 4)),
    ],
)
def test_measures_by_hand(text: str, expected: DiversityMetrics) -> None:
    given = measure_diversity(text)
    assert (given.words, given.longest_repeat) == (expected.words, expected.longest_repeat)
    for name in ("distinct_1", "distinct_2", "distinct_3", "repeated_4grams"):
        assert getattr(given, name) == pytest.approx(getattr(expected, name)), name


def test_measures_know_turkish_letters() -> None:
    assert measure_diversity("Işık ışık IŞIK").distinct_1 == pytest.approx(1 / 3)
    assert measure_diversity("ILIK ilik", "tr").distinct_1 == 1.0
    assert measure_diversity("ILIK ilik", "en").distinct_1 == 0.5


def test_samples_are_what_the_engine_writes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine, sampling = Engine(model), SamplingParams(seed=4, max_new_tokens=15)
    samples = list(generate_samples(engine, tokenizer, ["Ayşe", "She", "Ayşe"], sampling))
    assert [sample.prompt for sample in samples] == ["Ayşe", "She", "Ayşe"]
    assert samples[0].text == samples[2].text != samples[1].text
    session = engine.session()
    session.prefill(encode_prompt(tokenizer, "Ayşe"))
    ids = list(session.generate(sampling, {tokenizer.eos_token_id}))
    assert samples[0].tokens == len(ids)
    assert samples[0].ended == session.ended


def test_a_sample_ends_at_a_stop_string(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine, sampling = Engine(model), SamplingParams(temperature=0, max_new_tokens=30)
    (free,) = generate_samples(engine, tokenizer, ["Ayşe"], sampling)
    stop = free.text[5:8]
    (cut,) = generate_samples(engine, tokenizer, ["Ayşe"], sampling.replace(stop=(stop,)))
    assert cut.ended and cut.tokens < free.tokens
    assert cut.text == free.text[: free.text.index(stop)]
