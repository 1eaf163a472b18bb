"""Changes while a run trains: when they hold, how they end or hold up a run, and that resuming makes them again."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_trainings import Killed, SmallTrainings, at, dictated, fit, kill, same_weights
from transformers import PreTrainedTokenizerBase
from waiting import until

from mm_rec.data.corpus import Corpus
from mm_rec.models.loading import load_model
from mm_rec.runs.control import update_control
from mm_rec.runs.metrics_log import CONTROL_EVENT, read_metrics
from mm_rec.training.checkpoint import Checkpoints
from mm_rec.training.trainer import Trainer


@pytest.fixture
def trainings(corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase) -> SmallTrainings:
    return SmallTrainings(corpus, word_tokenizer)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: run\n")
    return folder


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == kind]


def rates(run: Path) -> dict[int, float]:
    return {record["step"]: record["lr"] for record in records(run, "train")}


def events(run: Path) -> list[str]:
    return [record["event"] for record in records(run, "event")]


def said(training: Trainer) -> str:
    return "\n".join(training.reporter.said)  # type: ignore[attr-defined]


def test_a_cap_of_the_learning_rate_holds_from_the_next_step_and_is_an_event(
    trainings: SmallTrainings, run: Path
) -> None:
    cap = at("step", 3, lambda: update_control(run, {"max_learning_rate": 0.001}))
    training = trainings.new(run, on_event=cap, schedule="constant")
    assert fit(training) == "finished"
    assert [rate for _, rate in sorted(rates(run).items())] == [0.003] * 4 + [0.001] * 8
    (event,) = [record for record in records(run, "event") if record["event"] == CONTROL_EVENT]
    assert (event["step"], event["revision"], event["limits"]) == (4, 1, {"max_learning_rate": 0.001})
    assert "step 4: from now on max-learning-rate = 0.001" in said(training)


def test_a_cap_above_the_schedule_changes_nothing(
    trainings: SmallTrainings, run: Path, tmp_path: Path
) -> None:
    update_control(run, {"max_learning_rate": 1.0})
    capped, plain = trainings.new(run), trainings.new(tmp_path / "plain")
    fit(capped)
    fit(plain)
    assert same_weights(capped.model, plain.model)


def test_a_run_stops_at_the_mean_loss_of_three_steps_and_not_at_a_lucky_batch(
    trainings: SmallTrainings, run: Path
) -> None:
    update_control(run, {"stop_at_loss": 1.0})
    measured: list[int] = []
    training = trainings.new(
        run, objective=dictated([2.0, 2.0, 0.1, 2.0, 1.0, 0.9, 1.0, 0.5]), optimizer="adamw",
        validate=lambda model: {"loss": float(measured.append(1) or len(measured))},
    )  # fmt: skip
    assert fit(training) == "loss-reached"
    assert training.state.step == 7 and measured == [1]  # a run that ends is measured
    assert events(run)[-1] == "loss-reached"
    checkpoint = Checkpoints(run / "checkpoints", 2).load_newest(print)
    assert checkpoint is not None and checkpoint.step == 7
    assert fit(trainings.resumed(run)) == "loss-reached"  # and it takes no step more
    update_control(run, {"stop_at_loss": None})
    again = trainings.resumed(run)
    assert fit(again) == "finished" and again.state.step == 12


def test_a_limit_of_the_recipe_holds_until_it_is_taken_back(trainings: SmallTrainings, run: Path) -> None:
    assert fit(trainings.new(run, stop_at_loss=100.0)) == "loss-reached"
    update_control(run, {"max_learning_rate": 0.001})
    assert fit(trainings.resumed(run, stop_at_loss=100.0)) == "loss-reached"
    update_control(run, {"stop_at_loss": None})
    assert fit(trainings.resumed(run, stop_at_loss=100.0)) == "finished"


def test_a_run_stops_when_the_epochs_asked_for_were_read(trainings: SmallTrainings, run: Path) -> None:
    training = trainings.new(run, steps=100)
    update_control(run, {"stop_at_epoch": 1})
    assert fit(training) == "epoch-reached"
    step = training.state.step
    assert training.batches.epoch(step) == 1 and training.batches.epoch(step - 1) == 0
    assert "epoch 1 has been read" in said(training)


def steered(run: Path, killed_at: int | None) -> Any:
    """Events of a run that is given two caps, before steps 5 and 8, and dies where that is asked for."""
    caps = {4: 0.002, 7: 0.0005}

    def on_event(moment: str, step: int) -> None:
        if moment == "step" and step in caps:
            update_control(run, {"max_learning_rate": caps.pop(step)})
        if (moment, step) == ("micro", killed_at):
            kill()

    return on_event


def test_a_run_killed_after_changes_equals_the_unbroken_one_bit_for_bit(
    trainings: SmallTrainings, run: Path, tmp_path: Path
) -> None:
    """Killed after both changes, then, going on from step 1, twice before it comes to them again."""
    whole = trainings.new(make_run(tmp_path / "whole"), on_event=steered(tmp_path / "whole", None))
    fit(whole)
    with pytest.raises(Killed):
        fit(trainings.new(run, on_event=steered(run, killed_at=9)))
    for step in (2, 6):
        with pytest.raises(Killed):
            fit(trainings.resumed(run, on_event=at("micro", step, kill)))
    again = trainings.resumed(run)
    assert again.state.step == 1
    assert fit(again) == "finished"
    assert same_weights(whole.model, again.model)
    assert rates(run) == rates(tmp_path / "whole")
    changes = [
        [
            (r["step"], r["revision"], r["limits"])
            for r in records(folder, "event")
            if r["event"] == CONTROL_EVENT
        ]
        for folder in (run, tmp_path / "whole")
    ]
    assert changes[0] == changes[1] and len(changes[0]) == 2
    assert "step 5: from now on max-learning-rate = 0.002 (as before the interruption)" in said(again)


def test_a_change_made_while_the_run_was_dead_waits_for_those_of_before(
    trainings: SmallTrainings, run: Path
) -> None:
    with pytest.raises(Killed):
        fit(trainings.new(run, on_event=steered(run, killed_at=9), schedule="constant"))
    update_control(run, {"max_learning_rate": 0.0001})
    fit(trainings.resumed(run, schedule="constant"))
    assert list(rates(run).values()) == [0.003] * 5 + [0.002] * 3 + [0.0001] * 4


def test_a_pause_saves_first_waits_and_is_no_training_time(trainings: SmallTrainings, run: Path) -> None:
    pauses = at("step", 2, lambda: update_control(run, {}, ["pause"]))
    training, seen = trainings.new(run, on_event=pauses), {}

    def resume() -> None:
        until(lambda: "paused" in events(run))
        time.sleep(1.0)
        seen["step"], seen["saved"] = training.state.step, training.checkpoints.steps()[-1].name
        update_control(run, {"max_learning_rate": 0.001}, ["resume"])

    person = threading.Thread(target=resume)
    person.start()
    start = time.perf_counter()
    assert fit(training) == "finished"
    person.join()
    assert seen == {"step": 3, "saved": "step-00000003"}
    assert time.perf_counter() - start - training.state.seconds > 0.9
    assert rates(run)[4] == 0.001
    assert [event for event in events(run) if event in ("paused", "continued")] == ["paused", "continued"]


def test_ctrl_c_ends_a_pause_and_the_run_goes_on_when_it_is_resumed(
    trainings: SmallTrainings, run: Path
) -> None:
    training = trainings.new(run, on_event=at("step", 2, lambda: update_control(run, {}, ["pause"])))

    def press() -> None:
        until(lambda: "paused" in events(run))
        os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=press)
    person.start()
    assert fit(training) == "stopped" and training.state.step == 3
    person.join()
    assert fit(trainings.resumed(run)) == "finished"  # the pause was ended, though nobody took it back


def test_save_leaves_a_snapshot_and_a_checkpoint(trainings: SmallTrainings, run: Path) -> None:
    saves = at("step", 4, lambda: update_control(run, {}, ["save"]))
    with pytest.raises(Killed):
        fit(trainings.new(run, on_event=lambda *event: (saves(*event), at("step", 6, kill)(*event))))
    again = trainings.resumed(run)
    assert again.state.step == 5 and same_weights(again.model, load_model(run / "checkpoint-5-user"))
    fit(again)
    assert events(run).count("snapshot") == 1  # a request is not repeated


def test_a_damaged_control_file_ends_no_run(trainings: SmallTrainings, run: Path) -> None:
    (run / "control.json").write_text("{")
    training = trainings.new(run)
    assert fit(training) == "finished"
    assert said(training).count("the control file is ignored") == 1
