"""What the trainer is handed: weights of other runs, data drawn from the policy, the metric that names the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import Said, SmallTrainings, fit, same_weights
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.errors import CheckpointError
from mm_rec.models.forward import Batch
from mm_rec.models.loading import load_model
from mm_rec.models.presets import build, preset
from mm_rec.runs.metrics import LOSS, MetricSpec, Outcome
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.training.checkpoint import Checkpoints
from mm_rec.training.interfaces import OnPolicyBatches
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.loop_state import LoopState
from mm_rec.training.objectives import next_token
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.trainer import Trainer


@pytest.fixture
def small_trainings(corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase) -> SmallTrainings:
    return SmallTrainings(corpus, word_tokenizer)


def newest(run: Path) -> Any:
    checkpoint = Checkpoints(run / "checkpoints", 9).load_newest(print)
    assert checkpoint is not None
    return checkpoint


@pytest.mark.parametrize("moments", [False, True])
def test_a_warm_start_takes_weights_and_perhaps_moments_and_begins_anew(
    small_trainings: SmallTrainings, tmp_path: Path, moments: bool
) -> None:
    first = small_trainings.new(tmp_path / "first", steps=4)
    fit(first)
    second = small_trainings.new(tmp_path / "second", model=_other(first.model), steps=4)
    assert not same_weights(first.model, second.model)
    second.warm_start(newest(tmp_path / "first"), moments=moments)
    assert same_weights(first.model, second.model) and second.state.step == 0
    taken = second.optimizer.state_tensors()
    assert bool(taken) == moments
    if moments:
        expected = first.optimizer.state_tensors()
        assert taken.keys() == expected.keys()
        assert all(torch.equal(taken[name], expected[name]) for name in taken)
    assert fit(second) == Outcome.FINISHED and second.state.step == 4


def _other(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same shape with other weights."""
    return build(model.config, seed=99)


def test_a_warm_start_from_another_shape_is_refused(small_trainings: SmallTrainings, tmp_path: Path) -> None:
    fit(small_trainings.new(tmp_path / "first", steps=2))
    wide = build(preset("llama_tiny").config(24, num_hidden_layers=1, hidden_size=128), seed=1)
    other = small_trainings.new(tmp_path / "second", model=wide)
    with pytest.raises(CheckpointError, match="of another shape"):
        other.warm_start(newest(tmp_path / "first"))


class Mirror:
    """Batches of what the model itself holds likeliest: they change as it learns."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []
        self.modes: list[bool] = []

    def sample(self, step: int, policy: PreTrainedModel) -> None:
        self.modes.append(policy.training)
        ids = torch.full((2, 1), step % 20)
        with torch.no_grad():
            for _ in range(7):
                likeliest = policy(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, likeliest], dim=1)
        self.drawn.append(ids)

    def batch_at(self, step: int, micro_step: int = 0) -> Batch:
        assert len(self.drawn) == step + 1, "a step's batch is drawn before it is asked for"
        ids = self.drawn[step]
        return {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}

    def epoch(self, step: int) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        pass


def test_data_may_be_drawn_from_the_present_policy(small_trainings: SmallTrainings, tmp_path: Path) -> None:
    model = small_trainings.new(tmp_path / "unused").model
    batches = Mirror()
    assert isinstance(batches, OnPolicyBatches)
    section = ResolvedTrainSection(
        steps=3, seq_len=8, batch_size=2, learning_rate=0.01, precision="float32", seed=1
    )
    trainer = Trainer(
        model,
        None,
        OptimizerSet(model, section),
        batches,
        next_token(torch.float32),
        section,
        tmp_path,
        Said(),
    )
    with StopRequest(lambda text: None) as stop:
        assert trainer.fit(stop) == Outcome.FINISHED
    assert len(batches.drawn) == 3 and batches.modes == [False] * 3


def test_the_best_model_is_chosen_by_the_metric_that_is_named(
    small_trainings: SmallTrainings, tmp_path: Path
) -> None:
    """Higher is better here, while the loss says otherwise."""
    wins = iter([0.1, 0.9, 0.5])
    losses = iter([1.0, 3.0, 0.5])
    training = small_trainings.new(
        tmp_path, steps=6, validate_every=2, validate=lambda model: {"loss": next(losses), "wins": next(wins)},
        metrics=(LOSS, MetricSpec("wins", lower_is_better=False)), best="wins",
    )  # fmt: skip
    fit(training)
    assert (training.state.best_step, training.state.best_value) == (4, 0.9)
    assert not same_weights(load_model(tmp_path / "best"), training.model)
    started = next(one for one in read_metrics(tmp_path / "metrics.jsonl") if one.get("event") == "started")
    assert started["metrics"][1] == {"name": "wins", "unit": "", "lower_is_better": False, "label": ""}


def test_a_checkpoint_of_before_goes_on(small_trainings: SmallTrainings, tmp_path: Path) -> None:
    """The loop's state had other names: best_loss and worse_in_a_row."""
    values = LoopState(step=3, best_value=1.5, best_step=2, evals_without_improvement=1).state_dict()
    former = {**values, "best_loss": values.pop("best_value"), "worse_in_a_row": 1}
    del former["best_value"], former["evals_without_improvement"]
    state = LoopState.from_state_dict(former)
    assert (state.best_value, state.evals_without_improvement, state.step) == (1.5, 1, 3)
