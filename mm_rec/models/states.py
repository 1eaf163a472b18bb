"""What a sequence has read, whatever the family: MM-Rec's state of constant size, or keys and values."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.key_values import KeyValueState
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.mmrec.state import MemoryState


class State(Protocol):
    """One sequence's past, as a transformers cache that the kernels can read too."""

    @property
    def length(self) -> int:
        """Tokens read."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    def tensors_for(self, tokens: int) -> list[Tensor]:
        """Its tensors in the order of the layers, contiguous, with room for so many more tokens."""

    def advance(self, tokens: int) -> None:
        """Note that so many tokens were written into the tensors."""

    def copy(self) -> State:
        """An independent copy."""


def new_state(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | str) -> State:
    """The empty state of one sequence."""
    if isinstance(model.config, MMRecConfig):
        return MemoryState(model.config, 1, dtype, device)
    return KeyValueState(model.config, dtype, device)
