"""Time asked is time taken: a run changes its number of steps with its speed, and a resumed one changes it again."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.runs.metrics_log import PLAN_EVENT, read_metrics
from mm_rec.runs.status import read_status
from mm_rec.training.time_limit import TimeLimit
from mm_rec.training.trainer import Trainer
from tests.small_trainings import Killed, SmallTrainings, at, fit, kill


def simulated(
    limit: TimeLimit, planned: int, pace: Callable[[int], float], closing: float
) -> tuple[int, float]:
    """(steps, seconds) of a run whose step number n takes `pace(n)` seconds."""
    step, seconds = 0, 0.0
    while step < planned:
        seconds += pace(step)
        step += 1
        planned = limit.steps(step, planned, seconds, closing)
    return step, seconds + closing


@pytest.fixture
def trainings(corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase) -> SmallTrainings:
    return SmallTrainings(corpus, word_tokenizer)


@pytest.mark.parametrize("planned", [1, 9, 40, 1000])
@pytest.mark.parametrize("slower", [0.01, 0.4, 0.9, 1.0, 1.1, 2.5])
def test_a_wrong_measurement_is_made_up_for(planned: int, slower: float) -> None:
    """Planned at a second a step; in truth a step takes `slower`."""
    steps, seconds = simulated(TimeLimit(planned + 2.0), planned, lambda step: slower, closing=2.0)
    assert seconds == pytest.approx(planned + 2.0, abs=max(0.03 * planned, slower))
    assert steps == pytest.approx(planned / slower, abs=max(0.03 * planned / slower, 1))


def test_speed_that_changes_under_way_is_made_up_for() -> None:
    rng = random.Random(4)
    for _ in range(200):
        turn, factor, noise = rng.randrange(600), rng.uniform(0.5, 4), rng.uniform(0, 0.3)

        def pace(step: int) -> float:
            return (factor if step > turn else 1.0) * rng.uniform(1 - noise, 1 + noise)  # noqa: B023

        _, seconds = simulated(TimeLimit(600), 600, pace, closing=10.0)
        assert seconds == pytest.approx(600, rel=0.04)


def test_no_fewer_and_no_more_steps_than_other_limits_allow_and_at_least_those_done() -> None:
    assert simulated(TimeLimit(50, least=90), 100, lambda step: 1.0, 0.0)[0] == 90
    assert simulated(TimeLimit(1000, most=120), 100, lambda step: 1.0, 0.0)[0] == 120
    assert simulated(TimeLimit(-5), 100, lambda step: 1.0, 0.0)[0] == 12  # the first look


class Clock:
    """A clock that only moves when a step is taken, or a validation measured."""

    def __init__(self, step: float, validation: float) -> None:
        self.now, self.step, self.validation = 0.0, step, validation

    def drive(self, training: Trainer, event: Callable[[str, int], None] | None = None) -> Trainer:
        """Let a training live by this clock."""

        def on_event(moment: str, step: int) -> None:
            self.now += self.step if moment == "micro" else 0.0
            if event is not None:
                event(moment, step)

        training.clock, training.on_event = lambda: self.now, on_event
        return training

    def validate(self, model: PreTrainedModel) -> dict[str, float]:
        """A validation that takes its time."""
        self.now += self.validation
        return {"loss": 1.0}


def test_a_slow_run_ends_in_time_with_the_rate_of_the_end(trainings: SmallTrainings, tmp_path: Path) -> None:
    clock = Clock(step=2.0, validation=4.0)
    training = trainings.new(
        tmp_path / "run",
        validate=clock.validate,
        steps=60,
        warmup_steps=6,
        validate_every=20,
        schedule="linear",
    )
    training.time_limit = TimeLimit(66.0)
    assert fit(clock.drive(training)) == "finished"
    assert clock.now == pytest.approx(66.0, rel=0.1)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    planned = [record["steps"] for record in records if record.get("event") == PLAN_EVENT]
    assert planned and planned[-1] == training.state.step == training.section.steps < 32
    assert read_status(tmp_path / "run").steps == training.state.step
    rates = [record["lr"] for record in records if record["kind"] == "train"]
    assert rates[-1] == pytest.approx(0.1 * training.section.learning_rate)
    validations = [record for record in records if record["kind"] == "validation"]
    assert validations[-1]["step"] == training.state.step and validations[-1]["seconds"] == 4.0
    assert any("steps instead of 60 fit into the time asked for" in text for text in training.reporter.said)  # type: ignore[attr-defined]


def test_a_killed_run_takes_the_steps_of_before_whatever_the_clock_says(
    trainings: SmallTrainings, tmp_path: Path
) -> None:
    def lived(run: Path, seconds: float, event: Callable[[str, int], None] | None = None) -> Trainer:
        training = trainings.new(run, steps=40, checkpoint_every=1000, log_every=1)
        training.time_limit = TimeLimit(60.0)
        clock = Clock(seconds, validation=0.0)

        def on_event(moment: str, step: int) -> None:
            clock.step = seconds * (1 + (step > 8))  # half the speed from here on
            if event is not None:
                event(moment, step)

        return clock.drive(training, on_event)

    def records(run: Path, kind: str) -> list[tuple[int, float, float]]:
        known = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == kind]
        return [
            (record["step"], record.get("lr"), record.get("loss", record.get("steps"))) for record in known
        ]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(lived(whole, 1.0))
    changes = [
        record for record in read_metrics(whole / "metrics.jsonl") if record.get("event") == PLAN_EVENT
    ]
    last = changes[-1]["step"]
    assert len(changes) > 1 and changes[0]["step"] > 1
    with pytest.raises(Killed):
        fit(lived(killed, 1.0, at("micro", last, kill)))
    again = trainings.resumed(killed, steps=40, log_every=1)
    assert again.state.step == 1  # so all changes are yet to come
    fit(Clock(step=0.5, validation=0.0).drive(again))
    assert records(killed, "train")[: last + 1] == records(whole, "train")[: last + 1]
    assert again.state.step > last  # on its own from there on, and it still had time
    # What was said again is written once.
    made = [record for record in read_metrics(killed / "metrics.jsonl") if record.get("event") == PLAN_EVENT]
    assert [one["step"] for one in made][: len(changes)] == [one["step"] for one in changes]
