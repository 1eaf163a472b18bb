"""Training objectives: (model, batch) → sums by name, each with how many were summed.

The sum named "loss" is what is trained on; the others are measurements. The trainer adds all of them up over the
micro-batches of a step and divides each by its count, so that accumulation and packing change nothing. What the names
mean (unit, direction) say the `MetricSpec`s that the trainer is given beside the objective (`runs/metrics.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mm_rec.models.cross_entropy import IGNORE_INDEX, chunked_cross_entropy, next_tokens, target_cross_entropy
from mm_rec.models.forward import (
    PASS_STATES,
    Batch,
    CarriedState,
    document_lengths,
    hidden_states,
    lm_head_of,
    new_carried_state,
    passed_state,
    read_segment,
    require_constant_state,
    stateful_hidden_states,
)


@dataclass(frozen=True, slots=True)
class SumCount:
    """A sum (a scalar; of "loss" with its gradient) and how many were summed: tokens, or pairs for preferences.

    A count that is a tensor is not waited for.
    """

    total: Tensor
    count: Tensor | int

    def detached(self) -> tuple[Tensor, Tensor | int]:
        """Both without gradients."""
        return self.total.detach(), self.count


Sums = dict[str, SumCount]
Objective = Callable[[PreTrainedModel, Batch], Sums]


def next_token(dtype: torch.dtype) -> Objective:
    """Next-token prediction with matrix products in `dtype`: the sum over tokens in nats, and the number of tokens."""

    def objective(model: PreTrainedModel, batch: Batch) -> Sums:
        with _autocast(batch, dtype):
            hidden = hidden_states(model, batch)
        # Outside autocast: the loss chooses its own dtypes.
        total = chunked_cross_entropy(hidden, lm_head_of(model), batch["labels"], dtype)
        return {"loss": SumCount(total, count_labels(batch))}

    return objective


def segmented_next_token(model: PreTrainedModel, dtype: torch.dtype, segment: int) -> Objective:
    """`next_token` on rows that are read in segments of so many tokens, each on the states that the one before left.

    What a segment computes is made again in the backward pass (activation checkpointing), so memory holds one segment's
    activations and the states between them; gradients go through the states, and are those of whole rows. Raises
    ConfigError for models without a state of constant size.
    """
    require_constant_state(model)

    def read(model: PreTrainedModel, part: Batch, state: CarriedState) -> tuple[Tensor, CarriedState]:
        with _autocast(part, dtype):
            hidden, state = read_segment(model, part, state)
        return target_cross_entropy(hidden, lm_head_of(model), part["targets"], dtype), state

    def objective(model: PreTrainedModel, batch: Batch) -> Sums:
        rows, length = batch["input_ids"].shape
        state = (
            passed_state(model, batch, segment) if PASS_STATES in batch else new_carried_state(model, rows)
        )
        whole = {name: x for name, x in batch.items() if name not in ("labels", PASS_STATES)}
        whole["targets"] = next_tokens(batch["labels"])
        totals = []
        for start in range(0, length, segment):
            part = {name: tensor[:, start : start + segment] for name, tensor in whole.items()}
            total, state = checkpoint(read, model, part, state, use_reentrant=False)
            totals.append(total)
        return {"loss": SumCount(torch.stack(totals).sum(), count_labels(batch))}

    return objective


def with_embedding_noise(objective: Objective, alpha: float) -> Objective:
    """The objective with uniform noise on the embeddings, of alpha / √(L · D) at most (NEFTune, Jain et al. 2023).

    L is the length of the document that a token stands in, D the width of the model.
    """

    def noisy(model: PreTrainedModel, batch: Batch) -> Sums:
        lengths = document_lengths(batch["document_ids"])

        def add_noise(module: torch.nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            most = alpha / (lengths * embedded.shape[-1]).sqrt()
            return embedded + (2 * torch.rand_like(embedded) - 1) * most[..., None].to(embedded.dtype)

        hook = model.get_input_embeddings().register_forward_hook(add_noise)
        try:
            return objective(model, batch)
        finally:
            hook.remove()

    return noisy


def carried_next_token(dtype: torch.dtype) -> Objective:
    """Next-token prediction that goes on from micro-batch to micro-batch of a step where the batch says `carried`.

    Gradients end where a row ends (truncated back-propagation through time). For models with a state of constant size.
    """
    state: CarriedState | None = None

    def objective(model: PreTrainedModel, batch: Batch) -> Sums:
        nonlocal state
        before = state if bool(batch["carried"]) else None
        with _autocast(batch, dtype):
            hidden, state = stateful_hidden_states(model, batch, before)
        total = chunked_cross_entropy(hidden, lm_head_of(model), batch["labels"], dtype)
        return {"loss": SumCount(total, count_labels(batch))}

    return objective


def _autocast(batch: Batch, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(batch["input_ids"].device.type, dtype=dtype, enabled=dtype.itemsize < 4)


def count_labels(batch: Batch) -> Tensor:
    """The number of tokens of a batch that are predicted, a scalar on its device."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
