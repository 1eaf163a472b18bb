"""A training in another process: started, followed, stopped, killed, restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage_recipes import pretraining
from waiting import until

from mm_rec.pipeline.worker import KILLED, Moment, Worker
from mm_rec.runs.metrics import Outcome

LONGEST = 300  # seconds for a process that imports torch and trains a few steps on a busy machine


@pytest.fixture
def worker(recipe_values: dict[str, Any], tmp_path: Path) -> Any:
    settings = {**recipe_values, "steps": 100_000, "validate_every": 50_000, "log_every": 1, "compile": False}
    worker = Worker(tmp_path / "run", pretraining(settings))
    yield worker
    worker.kill()


def test_a_training_is_started_followed_stopped_and_goes_on_to_be_killed(worker: Worker) -> None:
    assert worker.status().state == "not started" and not worker.alive
    worker.start()
    until(lambda: worker.status().step >= 3, lambda: worker.alive)
    assert worker.alive and worker.status().state == "training"
    worker.stop()
    assert worker.wait(LONGEST) == 0
    found = worker.status()
    assert (found.state, found.outcome) == ("ended", Outcome.STOPPED)
    worker.restart()
    until(lambda: worker.status().step >= found.step + 2, lambda: worker.alive)
    worker.kill()
    assert not worker.alive and worker.status().state == "training", "a killed run says nothing for itself"


def test_a_worker_dies_at_the_moment_that_is_named(worker: Worker) -> None:
    worker.start(Moment("step", 2))
    assert worker.wait(LONGEST) == KILLED
    assert worker.status().step == 1
