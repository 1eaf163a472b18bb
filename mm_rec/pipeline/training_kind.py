"""Kinds of stages that train: they differ in what they prepare, and run in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mm_rec.pipeline.kinds import StageContext, StageKind, StageResult
from mm_rec.training.section import TrainSection

if TYPE_CHECKING:
    from mm_rec.pipeline.training_job import TrainingContext, TrainingJob


def training_kind(
    name: str,
    section: type[TrainSection],
    prepare: Callable[[Any, TrainingContext], TrainingJob],
    **hooks: Callable[..., Any],
) -> StageKind:
    """A kind that trains what `prepare` gives; `hooks` are the others of `StageKind`: connect, require, reuse."""
    return StageKind(name, section, run=_train, prepare=prepare, makes=("model",), **hooks)


def _train(kind: StageKind, section: Any, context: StageContext) -> StageResult:
    from mm_rec.pipeline.train import run_training  # it brings torch, and a kind's options are shown without

    return run_training(kind, section, context)
