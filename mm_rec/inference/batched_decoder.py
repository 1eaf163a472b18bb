"""Decoding on a GPU: a step reads one token of every sequence, writes their states in place, and is one CUDA graph.

Shapes: N sequences, B rows that a step reads (a power of two), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.inference.adapter_slots import MAX_ADAPTER_SLOTS, AdapterSlots
from mm_rec.inference.decoder_check import verify_decoder
from mm_rec.models.adapters import adapters_of, apply_adapters
from mm_rec.models.device_graph import can_record, noting_waits, record
from mm_rec.models.families import UnsupportedModelError
from mm_rec.models.lora import lora_layers
from mm_rec.models.state_pools import bucket, pool_for
from mm_rec.models.states import SequenceState, new_state

_FIRST_ROWS = 1


class BatchedDecoder:
    """Reads one token of each of many sequences at a time, on the model's device."""

    max_tokens = 1  # of a sequence; more are read by the model itself

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._device = model, model.device
        self._pool = pool_for(model)
        self._tables = [_LoraTable(name, layer, self._device) for name, layer in lora_layers(model)]
        self._slots = AdapterSlots(model, [(table.layer, table.set) for table in self._tables])
        self._steps: dict[tuple[int, int, int], Callable[[], None]] = {}
        self._allocate(_FIRST_ROWS)
        allowed = 0.05 if model.dtype.itemsize == 2 else 1e-3
        verify_decoder(model, self._slots, self._read_alone, allowed)

    def adapter_slot(self, choice: dict[str, float]) -> int | None:
        """As `AdapterSlots.slot`."""
        return self._slots.slot(choice)

    def forward(
        self, states: Sequence[SequenceState], tokens: Sequence[Sequence[int]], slots: Sequence[int]
    ) -> Tensor:
        """Read one token of each sequence, with its adapters; returns the logits (N, V) after it, on the CPU."""
        if len(states) > len(self._logits):
            self._allocate(bucket(len(states)))
        rows, lengths = self._pool.place(states), self._pool.lengths(states)
        inputs = torch.zeros(3, len(self._logits), dtype=torch.int64)
        for row, own, length, slot in zip(rows, tokens, lengths, slots, strict=True):
            inputs[:, row] = torch.tensor([own[0], length, slot + 1])
        self._inputs.copy_(inputs.pin_memory() if self._device.type == "cuda" else inputs, non_blocking=True)
        self._step(bucket(len(states)), self._pool.places(max(lengths) + 1))()
        self._pool.advance(states)
        return self._logits[: bucket(len(states))].cpu()[rows]

    def release(self, state: SequenceState) -> None:
        """Give a state tensors of its own, which other threads may read."""
        self._pool.release(state)

    def _allocate(self, rows: int) -> None:
        """Room for so many sequences; what was recorded of other rooms is forgotten."""
        vocabulary = self._model.config.get_text_config().vocab_size
        self._inputs = torch.zeros(3, rows, dtype=torch.int64, device=self._device)
        self._logits = torch.zeros(rows, vocabulary, device=self._device)
        self._pool.resize(rows)

    def _step(self, rows: int, seen: int) -> Callable[[], None]:
        """The step of so many rows that look at so many places of a cache, recorded where the device can."""
        key = rows, seen, self._pool.generation + sum(table.generation for table in self._tables)
        if key not in self._steps:
            self._steps = {kept: step for kept, step in self._steps.items() if kept[2] == key[2]}
            self._steps[key] = self._record(partial(self._read, rows, seen), rows)
        return self._steps[key]

    def _record(self, step: Callable[[], None], rows: int) -> Callable[[], None]:
        if not can_record(self._device):
            return step
        changed = self._pool.changed_tensors(rows)
        before = [tensor.clone() for tensor in changed]
        try:
            with noting_waits(self._device) as waits:
                step()
        finally:
            for tensor, value in zip(changed, before, strict=True):  # the token has been read already
                tensor.copy_(value)
        return step if waits else record(step, self._device)

    @torch.inference_mode()
    def _read(self, rows: int, seen: int) -> None:
        """Read what the inputs say, by the model."""
        ids, positions, slots = self._inputs[:, :rows]
        with self._adapted(slots):
            logits = self._pool.run(ids[:, None], positions, seen)
        self._logits[:rows].copy_(logits[:, -1])

    @contextmanager
    def _adapted(self, slots: Tensor) -> Iterator[None]:
        """Each row with its own adapters instead of those that are applied, which may bring a head of their own."""
        adapters = adapters_of(self._model)
        applied = {} if adapters is None else dict(adapters.weights)
        if applied:
            apply_adapters(self._model, {})
        for table in self._tables:
            table.layer.forward = partial(table.forward, slots)
        try:
            yield
        finally:
            for table in self._tables:
                del table.layer.forward
            if applied:
                apply_adapters(self._model, applied)

    def _read_alone(self, ids: Sequence[int], slot: int) -> Tensor:
        """The logits (T, V) after each token of a sequence; raises UnsupportedModelError where they cannot be had."""
        state = new_state(self._model, self._model.dtype, self._device)
        try:
            return torch.cat([self.forward([state], [[token]], [slot]) for token in ids])
        except Exception as error:  # each family has its own
            raise UnsupportedModelError(f"this kind of model ({type(error).__name__}: {error})") from error


class _LoraTable:
    """The adapters of one projection by slot, so that rows can take theirs: a (slots, rank, K), b (slots, N, rank)."""

    def __init__(self, name: str, layer: Any, device: torch.device) -> None:
        self.layer, self.generation = layer, 0
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            raise UnsupportedModelError(f"an adapter of {name}, which is no linear projection")
        weight = base.weight
        self._a = torch.zeros(MAX_ADAPTER_SLOTS + 1, 0, weight.shape[1], dtype=weight.dtype, device=device)
        self._b = torch.zeros(MAX_ADAPTER_SLOTS + 1, weight.shape[0], 0, dtype=weight.dtype, device=device)

    def set(self, slot: int, a: Tensor, b: Tensor) -> None:
        """The factors of a slot; slot −1 has none."""
        if (more := len(a) - self._a.shape[1]) > 0:
            self._a = torch.nn.functional.pad(self._a, (0, 0, 0, more))
            self._b = torch.nn.functional.pad(self._b, (0, more))
            self.generation += 1
        self._a[slot + 1, : len(a)], self._b[slot + 1, :, : len(a)] = a, b

    def forward(self, slots: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, 1, K) → (B, 1, N), what the projection gives and what each row's adapters add."""
        out: Tensor = self.layer.get_base_layer()(x)
        if not self._a.shape[1]:
            return out
        return out + (x @ self._a[slots].mT) @ self._b[slots].mT


def batched_decoder_for(model: PreTrainedModel) -> tuple[BatchedDecoder | None, str]:
    """The decoder of a model on a GPU, or None and why the model reads for one sequence after the other."""
    try:
        return BatchedDecoder(model), ""
    except UnsupportedModelError as error:
        return None, f"decoding many at once does not know {error}"
