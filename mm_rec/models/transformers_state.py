"""The state of a model that transformers alone knows: recurrent layers, keys and values of unlike sizes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_SCALARS = "scalars"  # the name under which what is no tensor is saved


def uses_plain_kv_cache(config: PreTrainedConfig) -> bool:
    """Return whether each layer caches keys and values of one size and nothing else."""
    layers = DynamicCache(config=config).layers
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    try:
        for name in sizes:
            getattr(config, name, None)  # raises RuntimeError where the layers differ in it
    except RuntimeError:
        return False
    unlike = getattr(config, "kv_lora_rank", None) is not None  # DeepSeek's: keys are wider than values
    return not unlike and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class TransformersState(DynamicCache):
    """transformers' own cache of one sequence, which can be copied and saved."""

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(config=config)
        self._device = torch.device(device)

    @property
    def length(self) -> int:
        """Tokens read; 0 for a model without attention, which does not count them."""
        return max((layer.get_seq_length() for layer in self._attending()), default=0)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in self._leaves() if isinstance(tensor, Tensor))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a further token adds, as far as it was read; 0 before, and without attention."""
        growing: list[Any] = [
            layer for layer in self._attending() if type(layer) is DynamicLayer and layer.is_initialized
        ]
        return sum(
            (layer.keys.nbytes + layer.values.nbytes) // max(1, layer.get_seq_length()) for layer in growing
        )

    def kernel_tensors(self, tokens: int) -> list[Tensor]:
        """The kernels know no such model; raises NotImplementedError."""
        raise NotImplementedError("this state is transformers' own")

    def advance(self, tokens: int) -> None:
        """As `kernel_tensors`."""
        raise NotImplementedError("this state is transformers' own")

    def copy(self) -> TransformersState:
        """An independent copy."""
        return copy.deepcopy(self)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs, by name."""
        tensors, scalars = {}, {}
        for number, layer in enumerate(self.layers):
            for path, value in _flat(vars(layer)):
                name = f"{number}.{path}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                elif isinstance(value, (bool, int)):
                    scalars[name] = value
        return {**tensors, _SCALARS: torch.tensor(list(json.dumps(scalars).encode()), dtype=torch.uint8)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was saved; raises ValueError where it is another model's."""
        if not tensors:
            return
        tensors = dict(tensors)
        scalars: dict[str, Any] = json.loads(bytes(tensors.pop(_SCALARS).tolist()))
        moved = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        for name, value in {**scalars, **moved}.items():
            number, path = name.split(".", 1)
            if int(number) >= len(self.layers):
                raise ValueError("this state has other layers than the model's configuration")
            _put(vars(self.layers[int(number)]), path.split("."), value)
        for layer in self._attending():
            if layer.is_initialized:
                layer.dtype, layer.device = layer.keys.dtype, layer.keys.device

    def _attending(self) -> list[Any]:
        return [layer for layer in self.layers if isinstance(layer, DynamicLayer)]

    def _leaves(self) -> Iterator[Any]:
        for layer in self.layers:
            yield from (value for _, value in _flat(vars(layer)))


def _flat(values: dict[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested dictionaries with its path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _put(values: dict[Any, Any], path: list[str], value: Any) -> None:
    """Set a value by its path; keys of nested dictionaries may be numbers."""
    name, *rest = path
    key = int(name) if name.isdigit() else name
    if rest:
        _put(values.setdefault(key, {}), rest, value)
    else:
        values[key] = value
