"""Interfaces of the trainer: batches, validation, and progress callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.forward import Batch

Validation = Callable[[PreTrainedModel], dict[str, float]]
OnEvent = Callable[[str, int], None]


class Batches(Protocol):
    """The batches of a run; `mm_rec.data.batches.RowBatches` is one."""

    def batch_at(self, step: int, micro_step: int = 0) -> Batch:
        """A micro-batch of a step, both counted from 0; the trainer asks in order."""

    def epoch(self, step: int) -> int:
        """The epoch, from 0, in which a step starts."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the order of the data depends on, and a stream's position."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a stream has read and not handed out."""

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Continue, or raise CheckpointError where the batches would be others."""


@runtime_checkable
class OnPolicyBatches(Protocol):
    """Batches that are drawn from the model as it is now (on-policy methods)."""

    def sample(self, step: int, policy: PreTrainedModel) -> None:
        """Make the batches of a step, before the first of them is asked for; the model is in evaluation mode."""


class Reporter(Protocol):
    """Progress callbacks."""

    def say(self, text: str) -> None:
        """A sentence for the person."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """A step was done; `values` are its metrics, first of them the loss."""
