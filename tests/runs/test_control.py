"""The control file: what may be asked for, and that a training does each thing once and at its step."""

import json
from pathlib import Path
from typing import Any

import pytest

from mm_rec.errors import ConfigError
from mm_rec.runs.control import ControlChange, ControlFile, read_control, update_control
from mm_rec.runs.metrics import Outcome
from mm_rec.runs.metrics_log import CONTROL_EVENT, MetricsLog, read_metrics
from mm_rec.runs.status import read_status


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just started."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: run\n")
    MetricsLog(folder / "metrics.jsonl").write("event", 0, event="started", steps=50)
    return folder


def log_change(run: Path, step: int, revision: int, **limits: Any) -> None:
    MetricsLog(run / "metrics.jsonl").write(
        "event", step, event=CONTROL_EVENT, revision=revision, limits=limits, asked=[]
    )


def test_each_change_is_a_revision_and_keeps_what_was_set_before(run: Path) -> None:
    update_control(run, {"stop_at_loss": "1.0"})
    update_control(run, {"max_learning_rate": "1e-4"}, ["save"])
    control = update_control(run, {"stop_at_loss": None}, ["pause"])
    assert control.revision == 3 and (control.save, control.pause, control.resume) == (2, 3, 0)
    assert control.set_limits == {"stop_at_loss": None, "max_learning_rate": 1e-4}
    assert read_control(run) == control
    assert json.loads((run / "control.json").read_text())["limits"] == control.set_limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"stop_at_loss": "abc"}, "stop_at_loss: .*number.*'abc'"),
        ({"stop_at_loss": "0"}, "stop_at_loss: .*greater than 0"),
        ({"stop_at_loss": "nan"}, "stop_at_loss: .*finite"),
        ({"stop_at_epoch": "1.5"}, "stop_at_epoch: .*integer"),
        ({"max_learning_rate": "-1"}, "max_learning_rate: .*greater than 0"),
        ({"stop_at_los": "1"}, "did you mean 'stop_at_loss'"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_and_nothing_is_written(
    limits: dict[str, Any], message: str, run: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        update_control(run, limits)
    assert not (run / "control.json").exists()


def test_runs_that_do_not_train_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run here"):
        update_control(tmp_path / "none", {"stop_at_loss": 1})
    for word in ("finished", "early"):
        MetricsLog(run / "metrics.jsonl").write("event", 50, event=word)
        with pytest.raises(ConfigError, match=rf"come to its end \(.*{word}.*, step 50\)"):
            update_control(run, {"stop_at_loss": 1})
    stages = tmp_path / "all"
    (stages / "pretrain").mkdir(parents=True)
    for folder in (stages, stages / "pretrain"):
        (folder / "recipe.yaml").write_text("name: all\n")
    with pytest.raises(ConfigError, match=r"several stages.*all/pretrain"):
        update_control(stages, {"stop_at_loss": 1})


def test_a_change_is_taken_over_once(run: Path) -> None:
    file = ControlFile(run, print)
    assert file.changes(0, 0) == []
    update_control(run, {"stop_at_loss": 1.0}, ["save"])
    assert file.changes(3, 0) == [ControlChange(1, {"stop_at_loss": 1.0}, frozenset({"save"}))]
    assert file.changes(4, 1) == []
    update_control(run, {"stop_at_epoch": 2})
    (change,) = file.changes(5, 1)
    assert change.limits == {"stop_at_loss": 1.0, "stop_at_epoch": 2} and not change.asked


def test_of_pause_and_resume_the_later_one_counts(run: Path) -> None:
    file = ControlFile(run, print)
    update_control(run, {}, ["pause"])
    update_control(run, {}, ["resume"])
    assert file.changes(1, 0)[0].asked == {"resume"}
    update_control(run, {}, ["pause"])
    assert file.changes(1, 2)[0].asked == {"pause"}


def test_changes_of_the_log_come_again_at_their_steps_and_newer_ones_wait(run: Path) -> None:
    log_change(run, 5, 1, stop_at_loss=1.0)
    log_change(run, 8, 2, stop_at_loss=0.5)
    log_change(run, 8, 3, stop_at_loss=0.4)
    assert update_control(run, {"stop_at_epoch": 4}).revision == 4
    file = ControlFile(run, print)
    file.resume(run, 1)
    assert file.changes(6, 1) == []  # revision 1 is in the checkpoint, 4 waits
    assert [change.revision for change in file.changes(8, 1)] == [2, 3, 4]
    assert file.changes(9, 4) == []


def test_rewinding_the_log_keeps_the_changes_that_are_still_to_come(run: Path) -> None:
    log = MetricsLog(run / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0)
    log_change(run, 3, 1, stop_at_loss=1.0)
    for _ in range(2):  # killed twice
        log.rewind(1)
    kept = [(record["kind"], record["step"]) for record in read_metrics(log.path)]
    assert kept == [("event", 0), ("train", 1), ("event", 3)]
    assert read_status(run).step == 1


def test_a_deleted_file_does_not_bring_old_revisions_back(run: Path) -> None:
    update_control(run, {"stop_at_loss": 1.0})
    log_change(run, 2, 1, stop_at_loss=1.0)
    (run / "control.json").unlink()
    assert update_control(run, {"stop_at_loss": 0.5}).revision == 2


@pytest.mark.parametrize("content", ['{"revision": 1, "lim', "[1]", '{"revision": 7, "limits": {"stop": 1}}'])
def test_a_damaged_file_is_told_of_once_and_changes_nothing(content: str, run: Path) -> None:
    said: list[str] = []
    file = ControlFile(run, said.append)
    update_control(run, {"stop_at_loss": 1.0})
    (run / "control.json").write_text(content)
    assert file.changes(1, 0) == file.changes(2, 0) == []
    assert len(said) == 1 and "control.json" in said[0]
    with pytest.raises(ConfigError, match=r"control\.json.*Delete it"):
        update_control(run, {"stop_at_loss": 1.0})


def test_the_status_follows_the_log(run: Path) -> None:
    log = MetricsLog(run / "metrics.jsonl")
    assert (read_status(run).state, read_status(run).step, read_status(run).steps) == ("training", 0, 50)
    log.write("train", 7, loss=2.0)
    log.write("event", 7, event="snapshot", folder="checkpoint-7-loss-2_00")
    log.write("event", 7, event="paused")
    found = read_status(run)
    assert (found.state, found.step, found.snapshots) == ("paused", 7, ["checkpoint-7-loss-2_00"])
    assert found.train is not None and found.train["loss"] == 2.0 and found.validation is None
    log.write("event", 7, event="continued")
    assert read_status(run).state == "training"
    for word in ("loss-reached", "at the loss asked for"):  # the second is of logs of before
        log.write("event", 9, event=word)
        assert (read_status(run).state, read_status(run).outcome) == ("ended", Outcome.LOSS_REACHED)
    update_control(run, {"stop_at_loss": None})  # such a run may be continued
