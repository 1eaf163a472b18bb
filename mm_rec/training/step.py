"""One optimizer step: gradients over all micro-batches, normalised by all that they count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.forward import Batch
from mm_rec.training.curriculum import apply_curriculum
from mm_rec.training.interfaces import Batches, OnEvent, OnPolicyBatches
from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.micro_step import MicroStep
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is no number: the optimizer step was not taken, so the weights stay good."""

    def __init__(self, loss: float, norm: float) -> None:
        self.loss, self.norm = loss, norm
        super().__init__(f"the loss is {loss} and the gradient norm {norm}")


@dataclass(frozen=True, slots=True)
class StepResult:
    """The objective's means by name, the gradient's norm before clipping, the tokens that were read.

    `skipped`: gradients were too large for float16, so the weights did not change.
    """

    means: dict[str, float]
    norm: float
    tokens: int
    skipped: bool = False


def training_step(
    model: PreTrainedModel,
    batches: Batches,
    run: MicroStep,
    optimizer: OptimizerSet,
    section: ResolvedTrainSection,
    step: int,
    learning_rate: float,
    on_event: OnEvent = lambda moment, step: None,
    scaler: LossScaler | None = None,
) -> StepResult:
    """Take a step, counted from 0, at a learning rate; raises NonFiniteError instead of spoiling the weights.

    `run` passes a micro-batch; where its loss is scaled, `scaler` says by how much. The device is waited for
    once, when the gradients of all micro-batches are there.
    """
    if isinstance(batches, OnPolicyBatches):
        batches.sample(step, model.eval())
    model.train()
    sums, tokens = _accumulate_gradients(batches, run, section, step, on_event)
    gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
    factor = 1 / (sums["loss"][1].clamp(min=1) * (1 if scaler is None else scaler.scale))
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    norm = torch.nn.utils.clip_grad_norm_(optimizer.parameters, section.clip)
    *pairs, length = torch.cat([*sums.values(), norm.to(factor.dtype)[None]]).tolist()
    means = {
        name: total / max(1, count) for name, total, count in zip(sums, pairs[::2], pairs[1::2], strict=True)
    }
    finite = math.isfinite(length)
    if scaler is not None and scaler.update(overflowed=not finite) and math.isfinite(means["loss"]):
        optimizer.zero_grad()
        return StepResult(means, length, tokens, skipped=True)
    if not (finite and math.isfinite(means["loss"])):
        raise NonFiniteError(means["loss"], length)
    optimizer.set_learning_rate(learning_rate)
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(means, length, tokens)


def _accumulate_gradients(
    batches: Batches, run: MicroStep, section: ResolvedTrainSection, step: int, on_event: OnEvent
) -> tuple[dict[str, Tensor], int]:
    """The gradient of the loss summed over all micro-batches of a step; returns the tokens that were read.

    And before them by name the sum and the count (2,) of everything that was measured, on the device.
    """
    sums: dict[str, Tensor] = {}
    tokens = 0
    for micro in range(section.accumulation):
        batch = apply_curriculum(batches.batch_at(step, micro), section, step)
        tokens += _present(batch)
        for name, pair in run(batch).items():
            sums[name] = sums[name] + pair if name in sums else pair
        on_event("micro", step)
    return sums, tokens


def _present(batch: Batch) -> int:
    """Tokens of a batch that are not padding, which is masked or has a negative document."""
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    documents = batch.get("document_ids")
    return batch["input_ids"].numel() if documents is None else int((documents >= 0).sum())
