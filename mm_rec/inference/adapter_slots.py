"""Choices of adapters that a decoder can read rows by, each row with another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.adapters import adapters_of, apply_adapters
from mm_rec.models.lora import lora_layers

NO_ADAPTER = -1
MAX_ADAPTER_SLOTS = 64  # choices of adapters and weights that are held at once
MAX_RANK = 1024  # of all adapters of a choice together
SetFactors = Callable[[int, Tensor, Tensor], None]


class AdapterSlots:
    """The slot of each choice; `layers`: PEFT's layers that a decoder knows, and what takes their factors.

    That gets a slot and the factors a (rank, K) and b (N, rank) of what the choice adds, b (a x).
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[tuple[Any, SetFactors]]) -> None:
        self._model, self._layers = model, layers
        self._slots: dict[tuple[tuple[str, float], ...], int | None] = {}

    def slot(self, choice: dict[str, float]) -> int | None:
        """Return the slot of this choice of adapters; a new choice is applied to the model.

        None: their effect is no sum of matrices (DoRA, trained biases, a head of its own), or there are too many;
        NO_ADAPTER: there are none.
        """
        key = tuple(sorted(choice.items()))
        if not key:
            return NO_ADAPTER
        if key not in self._slots:
            apply_adapters(self._model, choice)
            self._slots[key] = self._fill(len(self._slots))
        return self._slots[key]

    @property
    def trained(self) -> bool:
        """Whether the model has an adapter that is being trained: it is applied, and no choice names it."""
        return any(active_adapters(layer) for layer, _ in self._layers)

    @torch.no_grad()
    def _fill(self, slot: int) -> int | None:
        """Hand the applied adapters to the layers; None where they are no sum of matrices."""
        if slot >= MAX_ADAPTER_SLOTS or not self._is_low_rank():
            return None
        for layer, set_factors in self._layers:
            names = active_adapters(layer)
            if not names:
                continue  # of rank 0, as every slot is at first
            a = torch.cat([layer.lora_A[one].weight for one in names])
            b = torch.cat([layer.lora_B[one].weight * layer.scaling[one] for one in names], dim=1)
            if len(a) > MAX_RANK:
                return None
            set_factors(slot, a, b)
        return slot

    def _is_low_rank(self) -> bool:
        """Return whether the active adapters only add low-rank products to the matrices of known layers."""
        adapters = adapters_of(self._model)
        known = {id(layer) for layer, _ in self._layers}
        return (adapters is None or adapters.is_additive) and all(
            id(layer) in known and not layer.lora_bias[name]
            for _, layer in lora_layers(self._model)
            for name in active_adapters(layer)
        )


def active_adapters(layer: Any) -> list[str]:
    """PEFT's names of the adapters that are applied to one of its layers."""
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.r]
