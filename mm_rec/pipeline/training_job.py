"""A training as its kind prepares it: model, data, objective and validation, before its settings are resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.models.presets import ModelSize
from mm_rec.runs.metrics import BITS_PER_BYTE, LOSS, TOKEN_ACCURACY, MetricSpec
from mm_rec.runtime import Precision
from mm_rec.training.checkpoint import Checkpoint
from mm_rec.training.interfaces import Batches, Reporter, Validation
from mm_rec.training.objectives import Objective
from mm_rec.training.section import ResolvedTrainSection, TrainSection


class TrainingData(Protocol):
    """The data of a training; `PretrainData` and `FinetuneData` are two."""

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """Training tokens of each source; None where nobody knows."""

    def batches(self, section: ResolvedTrainSection) -> Batches:
        """The run's batches from its first step on."""

    def longest(self, section: ResolvedTrainSection) -> int:
        """Tokens of the longest document that the model reads."""

    def describe(self, section: ResolvedTrainSection, size: ModelSize) -> list[str]:
        """Describe what is read and what is unusual about it, a line each."""

    def card_lines(self, section: ResolvedTrainSection) -> list[str]:
        """The data in a few lines, for the model card."""

    def steps_per_epoch(self, section: ResolvedTrainSection) -> float | None:
        """Steps in which all of it is read once; None where nobody knows."""

    def preview(self) -> Mapping[str, str]:
        """The first example of each source as the model reads it, with what is learnt of it in ⟦ ⟧."""


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """The context of a training: its run, the device, the seed, and the checkpoint that it goes on from."""

    run: Path
    reporter: Reporter
    device: torch.device
    checkpoint: Checkpoint | None
    seed: int


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training as its kind prepares it: model, tokenizer, data, what is learnt and how it is measured.

    `base` names what the model was before, `continued` says whether it had learnt something, `inputs` goes into the
    lineage. `metrics` describe what objective and validation give, `best` is that of them by which the best model is
    chosen. `forgetting` gives bits a byte of the base's held-out text before and after, where they are known.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    section: TrainSection
    objective: Callable[[torch.dtype], Objective]
    validation: Callable[[ResolvedTrainSection, Precision], Validation]
    base: str
    continued: bool
    inputs: Mapping[str, Any]
    metrics: tuple[MetricSpec, ...] = (LOSS, BITS_PER_BYTE, TOKEN_ACCURACY)
    best: str = LOSS.name
    forgetting: Callable[[], dict[str, float] | None] = lambda: None
