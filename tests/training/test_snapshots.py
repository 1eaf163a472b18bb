"""Snapshots: the rule of loss drops, to the letter; names; resuming."""

from pathlib import Path

import pytest
from small_trainings import Killed, SmallTrainings, at, dictated, fit, kill, same_weights
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.models.loading import find_model, load_model
from mm_rec.runs.metrics_log import read_metrics


@pytest.fixture
def trainings(corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase) -> SmallTrainings:
    return SmallTrainings(corpus, word_tokenizer)


def snapshots(run: Path) -> list[str]:
    return sorted((path.name for path in run.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))


@pytest.mark.parametrize(
    ("losses", "changes", "expected"),
    [
        # means from step 3 on: 1.81, 1.79; the first is not below 1.8
        ([1.81, 1.81, 1.81, 1.75], {}, ["4-loss-1_79"]),
        # the first two steps have no mean, however low their losses
        ([1.0, 1.0, 1.3], {}, ["3-loss-1_10"]),
        # 1.62 → the next below 1.52: 1.53 is not, 1.50 is; then below 1.40: 1.45 is not
        ([1.62, 1.62, 1.62, 1.35, 1.62, 1.53, 1.20], {}, ["3-loss-1_62", "6-loss-1_50"]),
        # one lucky batch does not move the mean of three below the threshold
        ([2.5, 2.5, 0.5, 2.5], {}, []),
        # a fall over several thresholds is one snapshot, and the next threshold follows from where it fell to
        ([1.7, 1.7, 1.7, 0.8, 0.8, 0.8], {}, ["3-loss-1_70", "4-loss-1_40", "5-loss-1_10", "6-loss-0_80"]),
        # relative: 1.00 → the next below 0.90: 0.91 is not, 0.80 is; then below 0.72: 0.73 is not
        ([1.0, 1.0, 1.0, 0.91, 0.91, 0.91, 0.58, 0.91, 0.70], {"save_loss_ratio": 0.1}, ["3-loss-1_00", "7-loss-0_80"]),
        ([1.62, 1.62, 1.62, 1.5], {"save_loss_step": 0.02}, ["3-loss-1_62", "4-loss-1_58"]),
        ([1.0, 1.0, 1.0], {"save_below_loss": None}, []),
        ([2.0], {"save_every": 4, "steps": 9}, ["4", "8"]),
    ],
)  # fmt: skip
def test_the_rule(
    losses: list[float],
    changes: dict[str, float],
    expected: list[str],
    trainings: SmallTrainings,
    tmp_path: Path,
) -> None:
    settings = {"steps": len(losses), "save_below_loss": 1.8, "optimizer": "adamw", **changes}
    fit(trainings.new(tmp_path, objective=dictated(losses), **settings))
    assert snapshots(tmp_path) == [f"checkpoint-{name}" for name in expected]


def test_a_snapshot_is_a_whole_model_folder_and_an_event(trainings: SmallTrainings, tmp_path: Path) -> None:
    training = trainings.new(tmp_path, steps=4, save_every=4)
    fit(training)
    folder = tmp_path / "checkpoint-4"
    assert find_model(folder) == folder and same_weights(load_model(folder), training.model)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == trainings.tokenizer.get_vocab()
    found = [
        record for record in read_metrics(tmp_path / "metrics.jsonl") if record.get("event") == "snapshot"
    ]
    assert [(record["step"], record["folder"]) for record in found] == [(4, "checkpoint-4")]
    assert not list(tmp_path.glob(".*"))


def test_a_resumed_run_goes_on_with_its_threshold_and_writes_the_same_names(
    trainings: SmallTrainings, tmp_path: Path
) -> None:
    settings = {"steps": 24, "checkpoint_every": 5, "save_below_loss": 2.8, "learning_rate": 0.01}
    whole = trainings.new(tmp_path / "whole", **settings)
    fit(whole)
    with pytest.raises(Killed):
        fit(trainings.new(tmp_path / "run", on_event=at("micro", 18, kill), **settings))
    again = trainings.resumed(tmp_path / "run", **settings)
    assert again.state.step == 15 and again.snapshots.threshold() < 2.8
    fit(again)
    assert snapshots(tmp_path / "run") == snapshots(tmp_path / "whole")
    assert len(snapshots(tmp_path / "run")) > 3
    for name in snapshots(tmp_path / "run"):
        assert same_weights(load_model(tmp_path / "run" / name), load_model(tmp_path / "whole" / name))
