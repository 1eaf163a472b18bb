"""The state of an MM-Rec model: everything it remembers of the tokens read so far.

Shapes: B sequences, M memories, K key size, V value size, C conv channels; of a hybrid's cache also S places, G
key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .configuration_mmrec import MEMORY, MMRecConfig

LayerState = dict[str, Tensor]  # `memory` and `conv`, or `keys` and `values`
_KINDS = ("memory", "conv", "keys", "values")
_CACHES = (".keys", ".values")
_INITIAL_CAPACITY = 256  # tokens


class MemoryState(Cache):
    """A transformers cache: of constant size for MM-Rec, with a growing part for its hybrid.

    Per memory layer `memory` (B, M, K, V) float32 and `conv` (B, taps − 1, C), the last inputs of the convolution;
    per attention layer `keys` and `values` (B, S, G, D), the token at position p of its document in place p.
    `lengths` (B,) counts the tokens of each row's current document, `document` (B,) is that document's id, `seen`
    the columns that the model was given.
    """

    is_compileable = False

    def __init__(
        self, config: MMRecConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(layers=[])
        wide = torch.promote_types(torch.float32, dtype)
        memory = (batch_size, config.num_memories, config.memory_key_dim, config.memory_value_dim)
        channels = config.num_memories * (2 * config.memory_key_dim + config.memory_value_dim)
        self.tensors: dict[str, Tensor] = {}
        for layer, kind in enumerate(config.layer_types):
            if kind == MEMORY:
                self.tensors[f"{layer}.memory"] = torch.zeros(memory, dtype=wide, device=device)
                self.tensors[f"{layer}.conv"] = torch.zeros(
                    batch_size, config.conv_taps - 1, channels, dtype=dtype, device=device
                )
            else:
                cache = (batch_size, 0, config.num_key_value_heads, config.head_dim)
                self.tensors[f"{layer}.keys"] = torch.zeros(cache, dtype=dtype, device=device)
                self.tensors[f"{layer}.values"] = torch.zeros(cache, dtype=dtype, device=device)
        self.tensors["lengths"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.tensors["document"] = torch.full((batch_size,), -1, dtype=torch.int64, device=device)
        self.seen = 0

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value

    def of_layer(self, layer: int) -> LayerState:
        """The tensors of a layer."""
        names = {kind: f"{layer}.{kind}" for kind in _KINDS}
        return {kind: self.tensors[name] for kind, name in names.items() if name in self.tensors}

    def keep(self, layer: int, after: LayerState) -> None:
        """Replace the tensors of a layer."""
        for kind, tensor in after.items():
            self.tensors[f"{layer}.{kind}"] = tensor

    def __len__(self) -> int:
        return sum(name.endswith((".memory", ".keys")) for name in self.tensors)

    def __repr__(self) -> str:
        return f"MemoryState(batch_size={self.batch_size}, seen={self.seen}, bytes={self.nbytes})"

    @property
    def batch_size(self) -> int:
        """Number of sequences held."""
        return self.tensors["lengths"].shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes: a function of configuration, batch size and dtype alone, but for a hybrid's cache."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a further token adds: nothing without a cache."""
        return sum(tensor[:, :1].numel() * tensor.itemsize for tensor in self._caches().values())

    @property
    def length(self) -> int:
        """Tokens read, where the state is that of one sequence."""
        return int(self.tensors["lengths"])

    def kernel_tensors(self, tokens: int) -> list[Tensor]:
        """The tensors of each layer in turn, contiguous, no part of a larger one, with room for so many more tokens."""
        if caches := self._caches():
            self._reserve(caches, self._longest() + tokens)
        for name, tensor in self.tensors.items():
            if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
                self.tensors[name] = tensor.contiguous().clone()
        return [x for name, x in self.tensors.items() if name not in ("lengths", "document")]

    def advance(self, tokens: int) -> None:
        """Count tokens that were written into the tensors."""
        self.tensors["lengths"] += tokens
        self.seen += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of tokens read so far (for transformers)."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = 0) -> int:
        """−1: there is no longest sequence."""
        return -1

    def reset(self) -> None:
        """Forget everything, in place."""
        for name, tensor in self.tensors.items():
            tensor.fill_(-1 if name == "document" else 0)
        self.seen = 0

    def copy(self) -> MemoryState:
        """An independent copy (a fork of the conversation)."""
        return self._with({name: tensor.clone() for name, tensor in self.tensors.items()})

    def shared(self) -> MemoryState:
        """A state of the same tensors: reading more tokens at once replaces them there, and leaves them here."""
        return self._with(dict(self.tensors))

    def first_rows(self, count: int) -> MemoryState:
        """A state of the first rows: views of these tensors."""
        return self._with({name: tensor[:count] for name, tensor in self.tensors.items()})

    def gather(self, rows: Tensor) -> MemoryState:
        """A new state made of the given rows, in that order; rows may repeat."""
        return self._with({name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> MemoryState:
        """A copy on another device."""
        return self._with({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def _longest(self) -> int:
        return int(self.tensors["lengths"].max())

    def _reserve(self, caches: dict[str, Tensor], places: int) -> None:
        """Make room for so many tokens in all; twice as much where there is none, so that few copies are made."""
        for name, tensor in caches.items():
            if places > tensor.shape[1]:
                size = (tensor.shape[0], max(_INITIAL_CAPACITY, 2 * places), *tensor.shape[2:])
                self.tensors[name] = tensor.new_zeros(size)
                self.tensors[name][:, : tensor.shape[1]] = tensor

    def _caches(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name.endswith(_CACHES)}

    def _with(self, tensors: dict[str, Tensor]) -> MemoryState:
        other = object.__new__(MemoryState)
        other.__dict__.update(self.__dict__)
        other.tensors = tensors
        return other

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put rows in the order of `beam_idx`, in place (beam search)."""
        self.tensors = self.gather(beam_idx.to(self.tensors["lengths"].device)).tensors

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, in place."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, in place."""
        rows = torch.arange(self.batch_size, device=self.tensors["lengths"].device)
        self.reorder_cache(rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """A recurrent state cannot be shortened; raises NotImplementedError."""
        raise NotImplementedError(
            "an MM-Rec state cannot forget its last tokens; keep a copy() to go back to"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs, by name."""
        longest = self._longest()
        taken = {name: tensor[:, :longest] for name, tensor in self._caches().items()}
        return {**self.tensors, **taken, "seen": torch.tensor(self.seen)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was saved; raises ValueError where the shapes are those of another model."""
        seen, tensors = tensors.get("seen"), {name: x for name, x in tensors.items() if name != "seen"}
        if seen is None or _fixed_shapes(tensors) != _fixed_shapes(self.tensors):
            raise ValueError("this state has other shapes than the model's configuration")
        self.tensors = {
            name: tensors[name].to(own) for name, own in self.tensors.items()
        }  # in the order of layers
        self.seen = int(seen)


def _fixed_shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, but for the places of a cache."""
    return {
        name: (x.shape[0], *x.shape[2:]) if name.endswith(_CACHES) else tuple(x.shape)
        for name, x in tensors.items()
    }
