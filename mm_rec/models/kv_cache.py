"""The state of a LLaMA-like model: keys and values of every token that one sequence has read.

Shapes: T tokens read, G key/value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

_INITIAL_CAPACITY = 256  # tokens; doubled whenever it is full, so that a token is copied twice at most


class LayerKV(CacheLayerMixin):
    """Keys and values of one layer, (capacity, G, D), of which the first `length` places are taken."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.parts: list[Tensor] = []

    def reserve(self, tokens: int, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for so many tokens in all."""
        capacity = self.parts[0].shape[0] if self.parts else 0
        if tokens <= capacity:
            return
        capacity = max(_INITIAL_CAPACITY, capacity)
        while capacity < tokens:
            capacity *= 2
        wider = [torch.empty(capacity, heads, size, dtype=dtype, device=device) for _ in range(2)]
        for new, old in zip(wider, self.parts, strict=False):
            new[: self.length] = old[: self.length]
        self.parts = wider
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: memory is allocated when it is needed."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add new keys and values (1, G, N, D); returns all of them, (1, G, T, D)."""
        _, heads, new, size = key_states.shape
        self.reserve(self.length + new, heads, size, key_states.dtype, key_states.device)
        start, self.length = self.length, self.length + new
        for part, states in zip(self.parts, (key_states, value_states), strict=True):
            part[start : self.length] = states[0].transpose(0, 1)
        keys, values = (part[: self.length].transpose(0, 1)[None] for part in self.parts)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that there will be, and the place of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens read."""
        return self.length

    def get_max_length(self) -> int:
        """−1: there is no longest sequence."""
        return -1


class KVCache(Cache):
    """A transformers cache of one sequence that grows by doubling and can be copied, saved and read by the kernels."""

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str) -> None:
        self.kv_layers = [LayerKV() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self.kv_layers))
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (heads, size, dtype, torch.device(device))

    @property
    def length(self) -> int:
        """Tokens read."""
        return self.kv_layers[0].length

    @property
    def nbytes(self) -> int:
        """Size in bytes: it grows with the tokens read."""
        return sum(part.nbytes for layer in self.kv_layers for part in layer.parts)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a further token adds."""
        heads, size, dtype, _ = self._shape
        return 2 * len(self.kv_layers) * int(heads * size * dtype.itemsize)

    def kernel_tensors(self, tokens: int) -> list[Tensor]:
        """Keys and values of each layer in turn, (capacity, G, D), with room for so many more tokens."""
        for layer in self.kv_layers:
            layer.reserve(layer.length + tokens, *self._shape)
        return [part for layer in self.kv_layers for part in layer.parts]

    def replace_tensors(self, parts: list[Tensor]) -> None:
        """Take other tensors, in the order of `kernel_tensors`, that hold the same tokens."""
        for layer, keys, values in zip(self.kv_layers, parts[::2], parts[1::2], strict=True):
            layer.parts, layer.is_initialized = [keys, values], True

    def advance(self, tokens: int) -> None:
        """Count tokens that were written into the tensors."""
        for layer in self.kv_layers:
            layer.length += tokens

    def copy(self) -> KVCache:
        """An independent copy."""
        other = object.__new__(KVCache)
        other.__dict__.update(self.__dict__)
        other.kv_layers = [LayerKV() for _ in self.kv_layers]
        other.layers = list(other.kv_layers)
        for new, old in zip(other.kv_layers, self.kv_layers, strict=True):
            new.length, new.is_initialized = old.length, old.is_initialized
            new.parts = [part.clone() for part in old.parts]
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the keys and values of the tokens read, by name; empty where nothing was read."""
        if not self.length:
            return {}
        names = (f"{layer}.{kind}" for layer in range(len(self.kv_layers)) for kind in ("keys", "values"))
        return {name: part[: self.length] for name, part in zip(names, self.kernel_tensors(0), strict=True)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was saved; raises ValueError where the shapes are those of another model."""
        if not tensors:
            return
        heads, size, dtype, device = self._shape
        names = [f"{layer}.{kind}" for layer in range(len(self.kv_layers)) for kind in ("keys", "values")]
        read = len(next(iter(tensors.values()), ()))
        if set(tensors) != set(names) or any(x.shape != (read, heads, size) for x in tensors.values()):
            raise ValueError("this state has other shapes than the model's configuration")
        for layer in self.kv_layers:
            layer.length = 0
        for part, name in zip(self.kernel_tensors(read), names, strict=True):
            part[:read] = tensors[name].to(device, dtype)
        self.advance(read)
