"""Decoding by the kernels: sequences of any length, a row each, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.inference.native.graph_builder import GraphBuilder
from mm_rec.inference.native.program import MAX_ADAPTER_SLOTS, MAX_RANK, LoraTable, StatePointers
from mm_rec.models.adapters import adapters_of, apply_adapters
from mm_rec.models.families import UnsupportedModelError
from mm_rec.models.lora import lora_layers
from mm_rec.models.states import SequenceState, new_state
from mm_rec.native.library import NoCompilerError

# A pass reads every weight once, whether for one row or for all. As many as the kernels are given of a prompt.
MAX_ROWS = 64


class KernelDecoder:
    """A model's program; what it computes for a sequence does not depend on the others, to the last bit."""

    def __init__(self, model: PreTrainedModel, threads: int, int8: bool = False) -> None:
        self._model = model
        self._graph = GraphBuilder(model, MAX_ROWS, threads, int8)
        self._slots: dict[tuple[tuple[str, float], ...], int | None] = {}
        self._verify(int8)

    def adapter_slot(self, choice: dict[str, float]) -> int | None:
        """Return the slot of this choice of adapters; a new choice is applied to the model.

        None: their effect is no sum of matrices (DoRA, trained biases, a head of its own), or there are too many; −1:
        there are none.
        """
        key = tuple(sorted(choice.items()))
        if not key:
            return -1
        if key not in self._slots:
            apply_adapters(self._model, choice)
            self._slots[key] = self._fill_slot(len(self._slots))
        return self._slots[key]

    def forward(
        self, states: Sequence[SequenceState], tokens: Sequence[Sequence[int]], places: Sequence[int]
    ) -> Tensor:
        """Read one or more tokens of each sequence, with its adapters; returns the logits (N, V) after the last."""
        rows = [
            (number, token, state.length + place, place + 1 == len(new))
            for number, (state, new) in enumerate(zip(states, tokens, strict=True))
            for place, token in enumerate(new)
        ]
        pointers = [
            StatePointers(state.kernel_tensors(len(new))) for state, new in zip(states, tokens, strict=True)
        ]
        # The default dtype is another for a moment where another thread loads a model.
        logits = torch.empty(len(states), self._graph.logits.shape[1], dtype=torch.float32)
        for start in range(0, len(rows), MAX_ROWS):
            part = rows[start : start + MAX_ROWS]
            self._graph.program.run(
                [token for _, token, _, _ in part],
                [position for _, _, position, _ in part],
                [places[number] for number, _, _, _ in part],
                [pointers[number] for number, _, _, _ in part],
            )
            for row, (number, _, _, ends) in enumerate(part):
                if ends:
                    logits[number] = self._graph.logits[row]
        for state, new in zip(states, tokens, strict=True):
            state.advance(len(new))
        return logits

    def _fill_slot(self, place: int) -> int | None:
        """Put the applied adapters into the tables; None where they are no sum of matrices."""
        found: list[tuple[LoraTable, Any, list[str]]] = [
            (table, layer, _active_adapters(layer)) for layer, table in self._graph.adapted
        ]
        if place >= MAX_ADAPTER_SLOTS or not self._is_low_rank():
            return None
        for table, layer, names in found:
            if not names:
                continue  # of rank 0, as every place is at first
            a = torch.cat([layer.lora_A[one].weight for one in names])
            b = torch.cat([layer.lora_B[one].weight * layer.scaling[one] for one in names], dim=1)
            if len(a) > MAX_RANK:
                return None
            table.set(place, a, b)
        return place

    def _is_low_rank(self) -> bool:
        """Return whether the active adapters only add low-rank products to the program's matrices."""
        adapters = adapters_of(self._model)
        described = {id(layer) for layer, _ in self._graph.adapted}
        return (adapters is None or adapters.is_additive) and all(
            id(layer) in described and not layer.lora_bias[name]
            for _, layer in lora_layers(self._model)
            for name in _active_adapters(layer)
        )

    @torch.inference_mode()
    def _verify(self, int8: bool) -> None:
        """Compare a few tokens with the model itself; raises UnsupportedModelError where they differ."""
        model, adapters = self._model, adapters_of(self._model)
        place = self.adapter_slot({} if adapters is None else adapters.weights)
        trained = place == -1 and any(_active_adapters(layer) for layer, _ in self._graph.adapted)
        if place is None or trained:
            raise UnsupportedModelError(
                "an adapter that is being trained" if trained else "an adapter of this kind"
            )
        ids = [(7 * place + 1) % model.config.vocab_size for place in range(8)]
        state = new_state(model, model.dtype, "cpu")
        ours = torch.cat([self.forward([state], [[token]], [place]) for token in ids])
        theirs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        allowed = 0.2 if int8 else 0.05 if model.dtype == torch.bfloat16 else 1e-3
        if not (ours - theirs).norm() <= allowed * theirs.norm():
            if not torch.isfinite(theirs).all():
                raise CheckpointError(
                    "the model's predictions are not finite numbers: its weights are damaged"
                )
            raise UnsupportedModelError("a part of the model that changes its predictions")


def _active_adapters(layer: LoraLayer) -> list[str]:
    """PEFT's names of the adapters that are applied to one of its layers."""
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.r]


def decoder_for(
    model: PreTrainedModel, int8: bool = False, threads: int | None = None
) -> tuple[KernelDecoder | None, str]:
    """The decoder of a model, or None and why the model decodes by itself."""
    try:
        return KernelDecoder(model, threads or torch.get_num_threads(), int8), ""
    except NoCompilerError as error:
        return None, f"{error}: decoding is several times slower without it"
    except UnsupportedModelError as error:
        return None, f"the fast form of decoding does not know {error}"
