"""A training of a tiny model that takes milliseconds a step, and losses that a test dictates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.batches import corpus_batches
from mm_rec.data.corpus import Corpus
from mm_rec.models.forward import Batch
from mm_rec.models.loading import load_model
from mm_rec.models.presets import build, preset
from mm_rec.runs.metrics import Outcome
from mm_rec.training.checkpoint import Checkpoints
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.objectives import Objective, SumCount, Sums, next_token
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.trainer import Trainer


class Killed(BaseException):
    """Leaves a training as SIGKILL does: nothing is saved or tidied up."""


class Said:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        pass


class SmallTrainings:
    """Trainings on one corpus."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer

    def new(self, run: Path, model: PreTrainedModel | None = None, **changes: Any) -> Trainer:
        own = ("validate", "objective", "on_event", "metrics", "best")
        extra = {key: changes.pop(key) for key in own if key in changes}
        settings = {
            "steps": 12,
            "seq_len": 16,
            "batch_size": 4,
            "learning_rate": 0.003,
            "seed": 5,
            "log_every": 1,
        }
        config = ResolvedTrainSection(
            **{**settings, "precision": "float32", "checkpoint_every": 1000, **changes}
        )
        batches = corpus_batches(self.corpus, config.seq_len, config.batch_size, 1, config.seed)
        shape = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 96}
        model = model or build(preset("llama_tiny").config(24, **shape), seed=1)
        objective: Objective = extra.pop("objective", next_token(torch.float32))
        optimizer = OptimizerSet(model, config)
        return Trainer(model, self.tokenizer, optimizer, batches, objective, config, run, Said(), **extra)

    def resumed(self, run: Path, **changes: Any) -> Trainer:
        """The training of a run, at its newest checkpoint."""
        checkpoint = Checkpoints(run / "checkpoints", 9).load_newest(print)
        assert checkpoint is not None
        training = self.new(run, load_model(checkpoint.model_folder), **changes)
        training.resume(checkpoint)
        return training


def fit(training: Trainer) -> Outcome:
    """Train with signals as requests to stop."""
    with StopRequest(lambda text: None) as stop:
        return training.fit(stop)


def dictated(losses: Sequence[float]) -> Objective:
    """An objective whose loss a token at each step is the one given; the last holds on."""
    left, real = list(losses), next_token(torch.float32)

    def objective(model: PreTrainedModel, batch: Batch) -> Sums:
        loss = real(model, batch)["loss"]
        value = left.pop(0) if len(left) > 1 else left[0]
        return {"loss": SumCount(0 * loss.total + value * loss.count, loss.count)}

    return objective


def at(moment: str, step: int, do: Callable[[], object]) -> Callable[[str, int], None]:
    """An event handler that does something once, at a moment of a step (from 0)."""
    done = False

    def on_event(happened: str, now: int) -> None:
        nonlocal done
        if not done and (happened, now) == (moment, step):
            done = True
            do()

    return on_event


def kill() -> None:
    """Leave at once."""
    raise Killed


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two models are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
