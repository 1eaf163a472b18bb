"""The forward and backward pass of one micro-batch, as it is or recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.device_graph import can_record, noting_waits, record
from mm_rec.models.forward import Batch
from mm_rec.runtime import is_out_of_memory, to_device, widest_float
from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.objectives import Objective

# Adds the gradient of a batch's loss to what is there; returns (sum, count) of everything that was measured, by name,
# two numbers on the device.
MicroStep = Callable[[Batch], dict[str, Tensor]]


def plain_micro_step(
    model: PreTrainedModel, objective: Objective, scaler: LossScaler | None = None
) -> MicroStep:
    """The pass as it is, of batches that lie on the CPU."""
    device = model.device

    def run(batch: Batch) -> dict[str, Tensor]:
        return differentiate(
            model, objective, to_device(batch, device), None if scaler is None else scaler.scale
        )

    return run


def differentiate(
    model: PreTrainedModel, objective: Objective, batch: Batch, scale: Tensor | float | None
) -> dict[str, Tensor]:
    """The pass of a batch on the model's device, its loss times `scale`."""
    device = batch["input_ids"].device
    wide = widest_float(device)
    found = objective(model, batch)
    loss = found["loss"].total
    (loss if scale is None else loss * scale).backward()
    return {
        name: torch.stack([_scalar(x, wide, device) for x in one.detached()]) for name, one in found.items()
    }


def _scalar(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number on a device; what lies on the CPU gets there without a copy that would be waited for."""
    if isinstance(value, Tensor) and value.device == device:
        return value.to(dtype)
    return torch.full((), float(value), dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The batch that a recorded pass reads, what it measures, and what launches it."""

    batch: Batch
    sums: dict[str, Tensor]
    launch: Callable[[], None]


class RecordedMicroStep:
    """The pass as a CUDA graph for each shape of batches: one launch instead of thousands.

    The first pass of a shape is as it is, since it allocates and compiles. Where it waits for the device, to look at a
    value or for a shape that depends on one, all of them stay so. Parameters must keep their gradients' memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        scaler: LossScaler | None,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._objective, self._scaler, self._say = model, objective, scaler, say
        self._scale = None if scaler is None else torch.ones((), device=model.device)
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._records = True

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """As `MicroStep`."""
        if self._scale is not None and self._scaler is not None:
            self._scale.fill_(self._scaler.scale)
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        moved = to_device(batch, self._model.device)
        if (recorded := self._recorded.get(shapes)) is not None:
            for name, tensor in moved.items():
                recorded.batch[name].copy_(tensor)
            recorded.launch()
            return {name: pair.clone() for name, pair in recorded.sums.items()}
        if not self._records:
            return differentiate(self._model, self._objective, moved, self._scale)
        with noting_waits(self._model.device) as waits:
            sums = differentiate(self._model, self._objective, moved, self._scale)
        if waits:
            self._records = False
            self._say(
                f"steps are launched piece by piece: they wait for the device at {', '.join(waits[:3])}"
            )
        else:
            self._record(shapes, moved)
        return sums

    def _record(self, shapes: tuple[object, ...], batch: Batch) -> None:
        model, objective, scale = self._model, self._objective, self._scale
        own = {name: tensor.clone() for name, tensor in batch.items()}
        sums: dict[str, Tensor] = {}
        try:
            launch = record(lambda: sums.update(differentiate(model, objective, own, scale)), model.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._records = False
            self._say("steps are launched piece by piece: there is no memory to record them as CUDA graphs")
        else:
            self._recorded[shapes] = _Recorded(own, sums, launch)


def micro_step(
    model: PreTrainedModel, objective: Objective, scaler: LossScaler | None, say: Callable[[str], None]
) -> MicroStep:
    """The pass, recorded where the device has CUDA graphs."""
    if can_record(model.device):
        return RecordedMicroStep(model, objective, scaler, say)
    return plain_micro_step(model, objective, scaler)
