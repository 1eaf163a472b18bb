"""The states of sequences that are read together: rows of tensors that a step writes in place.

A sequence has a row as long as it is among those that are read; its state's tensors are then views of that row, so
whatever copies or saves the state finds what was written. The rows in use come first, without a gap.

Shapes: R rows of a pool, B rows that a step reads, C places of a KV cache, S of them that are looked at, G key/value
heads, D head size, V vocabulary.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from mm_rec.models.families import UnsupportedModelError
from mm_rec.models.kv_cache import KVCache
from mm_rec.models.mmrec.configuration_mmrec import ATTENTION, MMRecConfig
from mm_rec.models.mmrec.state import MemoryState
from mm_rec.models.states import SequenceState, new_state

_FIRST_PLACES = 256


class StatePool(ABC):
    """The states of the sequences that are read; `generation` changes when its tensors are others."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.generation = model, 0
        self._owners: list[weakref.ref[Any] | None] = []
        self._marks: list[Tensor | None] = []  # of each row, the view that its owner's `_mark` is

    def place(self, states: Sequence[SequenceState]) -> list[int]:
        """Give the states the first rows, and return which; one that has a row among them keeps it."""
        self.make_room(states)
        count, residents = len(states), self._residents()
        row_of = {id(state): row for row, state in residents.items()}
        wanted = {id(state) for state in states}
        for row, state in residents.items():
            if id(state) not in wanted and row < bucket(count):
                self._take_out(state)
                self._owners[row] = None
        rows = [row_of.get(id(state), count) for state in states]
        free = iter(set(range(count)).difference(rows))
        for place, state in enumerate(states):
            if rows[place] >= count:
                if id(state) in row_of:
                    self._owners[rows[place]] = None
                rows[place] = next(free)
                self._put_in(state, rows[place])
                self._owners[rows[place]], self._marks[rows[place]] = weakref.ref(state), self._mark(state)
        return rows

    def release(self, state: SequenceState) -> None:
        """Take a state out of its row, where it lies in one."""
        for row, resident in self._residents().items():
            if resident is state:
                self._take_out(state)
                self._owners[row] = None

    def resize(self, rows: int) -> None:
        """Have so many rows, all of them free."""
        for state in self._residents().values():
            self._take_out(state)
        self._owners, self._marks = [None] * rows, [None] * rows
        self.generation += 1
        self._allocate(rows)

    def _residents(self) -> dict[int, Any]:
        """The states that lie in rows: not those that the model has replaced the tensors of, reading for them."""
        found = {row: owner() for row, owner in enumerate(self._owners) if owner is not None}
        return {
            row: state
            for row, state in found.items()
            if state is not None and self._mark(state) is self._marks[row]
        }

    @abstractmethod
    def make_room(self, states: Sequence[Any]) -> None:
        """See that a further token of each has a place."""

    @abstractmethod
    def run(self, ids: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Read ids (B, 1) at positions (B,) into the first rows, looking at `seen` places; returns logits (B, 1, V)."""

    @abstractmethod
    def lengths(self, states: Sequence[Any]) -> list[int]:
        """How many tokens of a cache each state has; 0 where there is none."""

    @abstractmethod
    def advance(self, states: Sequence[Any]) -> None:
        """Note that each state has read a token."""

    @abstractmethod
    def _allocate(self, rows: int) -> None:
        """Make the tensors."""

    @abstractmethod
    def places(self, tokens: int) -> int:
        """The places of a cache that a step looks at to see so many; 0 where there is none."""

    @abstractmethod
    def changed_tensors(self, rows: int) -> list[Tensor]:
        """Tensors of the first rows for which it matters how often a step was run."""

    @abstractmethod
    def _mark(self, state: Any) -> Tensor:
        """A tensor of a state that whatever reads for it replaces, but for this pool."""

    @abstractmethod
    def _put_in(self, state: Any, row: int) -> None:
        """Copy a state into a row, and make its tensors views of it."""

    @abstractmethod
    def _take_out(self, state: Any) -> None:
        """Give a state tensors of its own again."""


class MemoryPool(StatePool):
    """States of MM-Rec: each tensor of a state, with R rows instead of one."""

    def _allocate(self, rows: int) -> None:
        config = cast(MMRecConfig, self.model.config)
        self._whole = MemoryState(config, rows, self.model.dtype, self.model.device)

    def run(self, ids: Tensor, positions: Tensor, seen: int) -> Tensor:
        """The model replaces tensors of a state; what it puts there is copied into those that stay."""
        part = self._whole.first_rows(len(ids))
        before = dict(part.tensors)
        logits: Tensor = self.model(input_ids=ids, past_key_values=part, use_cache=True).logits
        changed = [name for name, tensor in part.tensors.items() if tensor is not before[name]]
        torch._foreach_copy_([before[name] for name in changed], [part.tensors[name] for name in changed])
        return logits

    def make_room(self, states: Sequence[MemoryState]) -> None:
        """Nothing: there is no cache."""

    def lengths(self, states: Sequence[MemoryState]) -> list[int]:
        """0: there is no cache."""
        return [0] * len(states)

    def advance(self, states: Sequence[MemoryState]) -> None:
        """The step has counted on the device."""
        for state in states:
            state.seen += 1

    def places(self, tokens: int) -> int:
        """0: there is no cache."""
        return 0

    def changed_tensors(self, rows: int) -> list[Tensor]:
        """All of them."""
        return list(self._whole.first_rows(rows).tensors.values())

    def _mark(self, state: MemoryState) -> Tensor:
        return state["lengths"]

    def _put_in(self, state: MemoryState, row: int) -> None:
        views = {name: tensor[row : row + 1] for name, tensor in self._whole.tensors.items()}
        torch._foreach_copy_(list(views.values()), [state.tensors[name] for name in views])
        state.tensors = views

    def _take_out(self, state: MemoryState) -> None:
        state.tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}


class KVPool(StatePool):
    """KV caches: keys and values of each layer, (R, C, G, D)."""

    _places = _FIRST_PLACES

    def _allocate(self, rows: int) -> None:
        self._parts: list[Tensor] = []  # the former are freed first
        example = KVCache(self.model.config, self.model.dtype, self.model.device)
        self._parts = [
            part.new_zeros(rows, self._places, *part.shape[1:]) for part in example.kernel_tensors(1)
        ]

    def make_room(self, states: Sequence[KVCache]) -> None:
        """As many places as the longest needs, a power of two."""
        longest = max(state.length for state in states) + 1
        if longest > self._places:
            self._places = bucket(longest)
            self.resize(len(self._owners))

    def run(self, ids: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Read by the model, with a cache that writes into the rows."""
        rows = torch.arange(len(ids), device=ids.device)
        layers: list[Any] = [
            _PooledLayer(keys[: len(ids)], values[: len(ids)], rows, positions, seen)
            for keys, values in zip(self._parts[::2], self._parts[1::2], strict=True)
        ]
        visible = torch.arange(seen, device=ids.device) <= positions[:, None]
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions[:, None],
            attention_mask=visible[:, None, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).logits
        return logits

    def lengths(self, states: Sequence[KVCache]) -> list[int]:
        """Tokens read."""
        return [state.length for state in states]

    def advance(self, states: Sequence[KVCache]) -> None:
        """Count the token."""
        for state in states:
            state.advance(1)

    def places(self, tokens: int) -> int:
        """A power of two."""
        return max(_FIRST_PLACES, bucket(tokens))

    def changed_tensors(self, rows: int) -> list[Tensor]:
        """None: a token is written where it was."""
        return []

    def _mark(self, state: KVCache) -> Tensor:
        return state.kernel_tensors(0)[0]

    def _put_in(self, state: KVCache, row: int) -> None:
        read = state.length
        views = [whole[row] for whole in self._parts]
        torch._foreach_copy_([x[:read] for x in views], [x[:read] for x in state.kernel_tensors(1)])
        state.replace_tensors(views)

    def _take_out(self, state: KVCache) -> None:
        kept = bucket(max(state.length, 1))
        state.replace_tensors([part[:kept].clone() for part in state.kernel_tensors(0)])


class _PooledLayer(CacheLayerMixin):
    """A layer's keys and values (B, C, G, D), into which a token of each row is written at its position."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor, seen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts, self._at, self._seen = (keys, values), (rows, positions), seen
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the memory is there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, G, 1, D); returns those of the places that are looked at, (B, G, S, D)."""
        for part, new in zip(self._parts, (key_states, value_states), strict=True):
            part.index_put_(self._at, new[:, :, 0].to(part.dtype))
        keys, values = (part[:, : self._seen].transpose(1, 2) for part in self._parts)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Places that are looked at, and the first."""
        return self._seen, 0

    def get_seq_length(self) -> int:
        """0: each row has its own."""
        return 0

    def get_max_length(self) -> int:
        """−1: there is no longest sequence."""
        return -1


def pool_for(model: PreTrainedModel) -> StatePool:
    """The pool for a model's states; raises UnsupportedModelError for those that have none."""
    config = model.config
    if isinstance(config, MMRecConfig):
        if ATTENTION in config.layer_types:
            raise UnsupportedModelError("a hybrid's cache")
        return MemoryPool(model)
    layers = getattr(config, "layer_types", None) or ()
    if not isinstance(new_state(model, model.dtype, model.device), KVCache):
        raise UnsupportedModelError("a state that is no plain KV cache")
    if getattr(config, "sliding_window", None) or set(layers) - {"full_attention"}:
        raise UnsupportedModelError("attention in windows or chunks")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise UnsupportedModelError("positions whose angles depend on the longest row")
    return KVPool(model)


def bucket(count: int) -> int:
    """The power of two that so many fit into: so few different steps are recorded."""
    return 1 << max(0, count - 1).bit_length()
