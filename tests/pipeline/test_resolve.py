"""What is derived where nobody asked: how often and on how much a run is validated, and how many steps fit a time."""

import random

import pytest

from mm_rec.models.presets import ModelSize, preset
from mm_rec.pipeline.resolve import Facts, Pace, Resolved, resolve, resolve_batch
from mm_rec.pipeline.sections import PretrainSection
from mm_rec.training.section import require_resolved, tokens_per_step

SIZE = ModelSize(parameters=1_900_000, flops_per_token=4_000_000, state_bytes=1, cache_bytes_per_token=0)


def derived(pace: Pace | None = None, **section: object) -> Resolved[PretrainSection]:
    facts = Facts(preset("tiny").config(), SIZE, {"text": 10_000_000}, False)
    given = PretrainSection.read({**section, "seed": 1})
    return resolve(resolve_batch(given, facts), facts, pace)


def test_a_validation_reads_at_most_a_tenth_of_what_is_trained_between_two() -> None:
    """It only goes forward, so it takes less than a tenth of the time as well."""
    rng = random.Random(2)
    for _ in range(300):
        section = {
            "steps": rng.choice([1, 7, 29, 300, 20_000]),
            "seq_len": rng.choice([64, 512, 2048]),
            "batch_size": rng.choice([1, 8, 16]),
            **({"validate_every": rng.choice([1, 5, 100])} if rng.random() < 0.3 else {}),
        }
        config = require_resolved(derived(**section).section)
        between = min(config.validate_every, config.steps) * tokens_per_step(config)
        read = config.validation_rows * config.seq_len
        assert read <= 0.1 * between or config.validation_rows == 1
        assert config.validation_rows <= 256


def test_a_long_run_is_validated_often_on_much_text_and_a_short_one_seldom() -> None:
    long = require_resolved(derived(steps=50_000).section)
    assert (long.validate_every, long.validation_rows) == (500, 256)
    short = require_resolved(derived(steps=29).section)  # one minute at 2,000 tokens a second
    assert short.validate_every == 29 and short.validation_rows * short.seq_len > 8192
    found = derived(steps=29)
    assert any("rows of 512 tokens: at most a tenth of the time" in reason for reason in found.lines())


def test_steps_follow_the_measured_speed_and_the_time_that_is_left() -> None:
    found = derived(Pace(4096.0, 50.0), minutes=1)
    assert found.section.steps == 46 and found.most_steps is None
    assert any("1 minutes at the 4,096 tokens/s just measured" in reason for reason in found.lines())
    assert derived(Pace(4096.0, -3.0), minutes=1).section.steps == 1  # measuring took all of it
    both = derived(Pace(4096.0, 50.0), minutes=1, tokens=40_960)
    assert both.section.steps == both.most_steps == 10
    slow = derived(Pace(100.0, 50.0), minutes=1, least_tokens="40k", tokens="1M")
    assert (slow.section.steps, slow.least_steps, slow.most_steps) == (10, 10, 244)
    assert any("40,000 tokens at least" in reason for reason in slow.lines())


@pytest.mark.parametrize("rows", [1, 700])
def test_what_was_asked_for_stays(rows: int) -> None:
    config = derived(steps=10, validation_rows=rows, validate_every=3).section
    assert (config.validate_every, config.validation_rows) == (3, rows)
