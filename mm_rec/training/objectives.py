"""Training objectives: (model, batch) → (sum of losses, how many were summed, measurements)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.cross_entropy import IGNORED, chunked_cross_entropy
from mm_rec.models.forward import Batch, head_weight, hidden_states

Objective = Callable[[PreTrainedModel, Batch], tuple[Tensor, int, dict[str, float]]]


def next_token(dtype: torch.dtype) -> Objective:
    """Next-token prediction with matrix products in `dtype`: the sum over tokens in nats, and the number of tokens."""

    def objective(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            hidden = hidden_states(model, batch)
        # Outside autocast: the loss chooses its own dtypes.
        total = chunked_cross_entropy(hidden, head_weight(model), batch["labels"], dtype)
        return total, int((batch["labels"][:, 1:] != IGNORED).sum()), {}

    return objective
