"""`mmrec runs`, on a training in a process of its own, as two terminals have it; and how it refuses."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_recipes import pretraining, recipe_text
from waiting import until

from mm_rec.cli.main import run
from mm_rec.models.loading import load_model
from mm_rec.pipeline.recipe import read_run
from mm_rec.pipeline.run import run_stage
from mm_rec.runs.control import update_control
from mm_rec.runs.metrics_log import CONTROL_EVENT, MetricsLog, read_metrics

_TRAIN = "from mm_rec.cli.main import main; main()"


def records(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def changes(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if record.get("event") == CONTROL_EVENT]


def last_step(folder: Path) -> int:
    return max((record["step"] for record in records(folder) if record["kind"] == "train"), default=0)


def test_a_live_training_obeys_and_killed_and_resumed_equals_the_unbroken_one(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_values |= {"steps": 100_000, "log_every": 1, "compile": False}
    recipe_values |= {"validate_every": 10_000, "checkpoint_every": 10_000}
    recipe, killed, whole = pretraining(recipe_values), tmp_path / "killed", tmp_path / "whole"
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    arguments = ["pretrain", "--recipe", "recipe.yaml", "--runs", ".", "--name", "killed"]
    with (tmp_path / "said").open("w") as said:
        command = [sys.executable, "-c", _TRAIN, *arguments]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)

    def training() -> bool:
        assert child.poll() is None, (tmp_path / "said").read_text()
        return True

    try:
        until(lambda: last_step(killed) > 5, training)
        assert run(["runs", "set", str(killed), "max-learning-rate=1e-5"]) == 0
        shown = capsys.readouterr().out
        assert "is told: max-learning-rate = 1e-05. It obeys before its next step (training, step" in shown
        (change,) = until(lambda: changes(killed), training)
        until(lambda: last_step(killed) > change["step"] + 3, training)
        assert run(["runs", "show", str(killed)]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"training, step [\d,]+ of 100,000; last heard of -?\d+ \w+ ago", shown), shown
        assert "learning rate 1.00e-05" in shown and "set: max-learning-rate = 1e-05" in shown
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    capped = [r["lr"] for r in records(killed) if r["kind"] == "train" and r["step"] > change["step"]]
    assert set(capped) == {1e-5}

    def end(moment: str, step: int) -> None:
        if (moment, step) == ("step", change["step"] + 9):
            os.kill(os.getpid(), signal.SIGINT)

    def steer_and_end(moment: str, step: int) -> None:
        if (moment, step) == ("step", change["step"] - 1):
            update_control(whole, {"max_learning_rate": 1e-5})
        end(moment, step)

    resumed = run_stage(read_run(killed), killed, listener, end)
    assert "continuing" in listener.text and "at step 1 of" in listener.text
    unbroken = run_stage(recipe, whole, listener, steer_and_end)
    assert resumed.step == unbroken.step == change["step"] + 10
    rates = [
        [(r["step"], r["lr"]) for r in records(folder) if r["kind"] == "train"] for folder in (killed, whole)
    ]
    assert rates[0] == rates[1] and len(rates[0]) == resumed.step
    one, other = (
        load_model(folder / "checkpoints" / f"step-{resumed.step:08d}" / "model")
        for folder in (killed, whole)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_stop_at_loss_ends_like_a_finished_run(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    recipe_values |= {"steps": 50, "save_every": 2}

    def steer(moment: str, step: int) -> None:
        if (moment, step) == ("step", 4):
            assert run(["runs", "set", str(folder), "stop-at-loss=50", "save"]) == 0

    outcome = run_stage(pretraining(recipe_values), folder, listener, steer)
    assert (outcome.outcome, outcome.step) == ("loss-reached", 5)
    assert "seconds (at the loss asked for)" in (folder / "README.md").read_text()
    for name in ("final", "best", "checkpoint-2", "checkpoint-4", "checkpoint-5-user"):
        assert (folder / name / "config.json").is_file(), name
    assert "stop-at-loss = 50.0, save" in capsys.readouterr().out
    assert run(["runs", "set", str(folder), "stop-at-loss=none"]) == 0
    assert "obeys when it is continued (at the loss asked for, step 5)" in capsys.readouterr().out
    assert run(["runs", "show", str(folder)]) == 0
    assert "saved: checkpoint-2, checkpoint-4, checkpoint-5-user" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("age", "shown"),
    [(0.2, "0 seconds"), (119, "119 seconds"), (121, "2 minutes"), (7_300, "2 hours"), (200_000, "2 days")],
)
def test_how_long_ago_a_run_was_heard_of(
    age: float,
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    MetricsLog(tmp_path / "metrics.jsonl").write("event", 3, event="started", steps=9)
    now = records(tmp_path)[-1]["time"] + age
    monkeypatch.setattr("mm_rec.runs.status.time.time", lambda: now)
    assert run(["runs", "show", str(tmp_path)]) == 0
    assert f"training, step 3 of 9; last heard of {shown} ago" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stop-at-los=1"], "did you mean 'stop-at-loss'"),
        (["paus"], "did you mean 'pause'"),
        (["colour=red"], "there are stop-at-loss, stop-at-epoch"),
        (["stop-at-loss"], "write stop-at-loss=1, or stop-at-loss=none"),
        (["save=now"], "takes no value: write save"),
        (["pause", "resume"], "contradict"),
        (["stop-at-loss=low"], "stop_at_loss"),
        (["max-learning-rate=0"], "greater than 0"),
    ],
)
def test_what_cannot_be_set_is_refused(
    changes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    assert run(["runs", "set", str(tmp_path), *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "control.json").exists()


def test_no_run_and_a_run_that_has_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "set", str(tmp_path / "none"), "save"]) == 2
    assert run(["runs", "show", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("there is no run here") == 2
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    assert run(["runs", "show", str(tmp_path)]) == 0
    assert "not started, step 0" in capsys.readouterr().out
