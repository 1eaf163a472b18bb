"""Decoding by the kernels: sequences of any length, a row each, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.inference.adapter_slots import AdapterSlots
from mm_rec.inference.decoder_check import verify_decoder
from mm_rec.inference.native.graph_builder import GraphBuilder
from mm_rec.inference.native.program import StatePointers
from mm_rec.models.families import UnsupportedModelError
from mm_rec.models.states import SequenceState, new_state
from mm_rec.native.library import NoCompilerError

# A pass reads every weight once, whether for one row or for all. As many as the kernels are given of a prompt.
MAX_ROWS = 64


class KernelDecoder:
    """A model's program; what it computes for a sequence does not depend on the others, to the last bit."""

    max_tokens = MAX_ROWS  # of a sequence: up to here it is the faster form of reading

    def __init__(self, model: PreTrainedModel, threads: int, int8: bool = False) -> None:
        self._model = model
        self._graph = GraphBuilder(model, MAX_ROWS, threads, int8)
        self._slots = AdapterSlots(model, [(layer, table.set) for layer, table in self._graph.adapted])
        allowed = 0.2 if int8 else 0.05 if model.dtype == torch.bfloat16 else 1e-3
        verify_decoder(model, self._slots, self._read_alone, allowed)

    def adapter_slot(self, choice: dict[str, float]) -> int | None:
        """As `AdapterSlots.slot`."""
        return self._slots.slot(choice)

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

    def _read_alone(self, ids: Sequence[int], slot: int) -> Tensor:
        """The logits (T, V) after each token of a sequence."""
        state = new_state(self._model, self._model.dtype, "cpu")
        return torch.cat([self.forward([state], [[token]], [slot]) for token in ids])


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
