"""One optimizer step: gradients over all micro-batches, normalised by all that they count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mm_rec.models.forward import Batch
from mm_rec.training.curriculum import apply_curriculum
from mm_rec.training.interfaces import Batches, OnEvent, OnPolicyBatches
from mm_rec.training.objectives import Objective
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is no number: the optimizer step was not taken, so the weights stay good."""

    def __init__(self, loss: float, norm: float) -> None:
        self.loss, self.norm = loss, norm
        super().__init__(f"the loss is {loss} and the gradient norm {norm}")


@dataclass(frozen=True, slots=True)
class StepResult:
    """The objective's means by name, the gradient's norm before clipping, and the tokens that were read."""

    means: dict[str, float]
    norm: float
    tokens: int


def training_step(
    model: PreTrainedModel,
    batches: Batches,
    objective: Objective,
    optimizer: OptimizerSet,
    section: ResolvedTrainSection,
    step: int,
    learning_rate: float,
    on_event: OnEvent = lambda moment, step: None,
) -> StepResult:
    """Take a step, counted from 0, at a learning rate; raises NonFiniteError instead of spoiling the weights."""
    if isinstance(batches, OnPolicyBatches):
        batches.sample(step, model.eval())
    model.train()
    means, tokens = _accumulate_gradients(model, batches, objective, optimizer, section, step, on_event)
    norm = float(torch.nn.utils.clip_grad_norm_(optimizer.parameters, section.clip))
    if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
        raise NonFiniteError(means["loss"], norm)
    optimizer.set_learning_rate(learning_rate)
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(means, norm, tokens)


def _accumulate_gradients(
    model: PreTrainedModel,
    batches: Batches,
    objective: Objective,
    optimizer: OptimizerSet,
    section: ResolvedTrainSection,
    step: int,
    on_event: OnEvent,
) -> tuple[dict[str, float], int]:
    """The gradient of the mean loss over all micro-batches of a step; returns the means by name, and the tokens."""
    device = next(model.parameters()).device
    sums: dict[str, tuple[float, int]] = {}
    tokens = 0
    for micro in range(section.accumulation):
        batch = apply_curriculum(batches.batch_at(step, micro), section, step)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        found = objective(model, batch)
        found["loss"].total.backward()
        for name, one in found.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = before[0] + float(one.total.detach()), before[1] + one.count
        tokens += _present(batch)
        on_event("micro", step)
    gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
    torch._foreach_mul_(gradients, 1 / max(1, sums["loss"][1]))
    return {name: total / max(1, count) for name, (total, count) in sums.items()}, tokens


def _present(batch: Batch) -> int:
    """Tokens of a batch that are not padding, which is masked or has a negative document."""
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    documents = batch.get("document_ids")
    return batch["input_ids"].numel() if documents is None else int((documents >= 0).sum())
