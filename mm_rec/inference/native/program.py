"""A model's decoding step as a list of operations for the kernels.

Shapes: R rows (one token each), D features. Buffers hold float32 for `max_rows` rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from mm_rec.inference.adapter_slots import MAX_ADAPTER_SLOTS, MAX_RANK
from mm_rec.native.library import native_library

GROUP = 64  # weights of a byte that share a scale, as in decoding.cpp


class OpKind(IntEnum):
    """As in decoding.cpp."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ANGLES = 3
    ROTATE = 4
    ATTEND = 5
    GATE = 6
    CONVOLVE = 7
    RECUR = 8
    LORA_IN = 9
    LORA_OUT = 10
    SCALE = 11


class Activation(IntEnum):
    """As in decoding.cpp; the names are transformers'."""

    silu = 0
    gelu_pytorch_tanh = 1


_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ACCUMULATE, _UNORDERED = 1, 2


class _Op(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32), ("flags", ctypes.c_int32), ("n", ctypes.c_int32 * 8), ("strides", ctypes.c_int64 * 3),
        ("f", ctypes.c_float * 2), ("in_", ctypes.c_void_p), ("out", ctypes.c_void_p), ("weight", ctypes.c_void_p),
        ("extra", ctypes.c_void_p * 4),
    )  # fmt: skip


class _Rows(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64), ("tokens", ctypes.c_void_p), ("positions", ctypes.c_void_p),
        ("adapters", ctypes.c_void_p), ("states", ctypes.c_void_p),
    )  # fmt: skip


class _Factors(ctypes.Structure):
    _fields_ = (("a", ctypes.c_void_p), ("b", ctypes.c_void_p), ("rank", ctypes.c_int64))


class LoraTable:
    """The adapters of one projection: at each place the factors of one choice of adapters, summed."""

    def __init__(self) -> None:
        self.array = (_Factors * MAX_ADAPTER_SLOTS)()
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def set(self, place: int, a: Tensor, b: Tensor) -> None:
        """out += b (a x) for rows that name this place; a: (rank, K), b: (N, rank)."""
        a, b = a.detach().float().contiguous(), b.detach().float().contiguous()
        self._kept[place] = (a, b)
        self.array[place] = _Factors(a.data_ptr(), b.data_ptr(), a.shape[0])


class Program:
    """Operations in the order in which they run, and the memory that they work in."""

    def __init__(self, max_rows: int, threads: int) -> None:
        self._library = native_library("decoding")
        self._library.run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int]
        self._library.run.restype = None
        self._library.op_size.restype = ctypes.c_int64
        assert self._library.op_size() == ctypes.sizeof(_Op)
        self.max_rows = max_rows
        self._ops: list[_Op] = []
        self._kept: list[object] = []  # what the operations point to
        self._array: ctypes.Array[_Op] | None = None
        self._threads = threads

    def buffer(self, features: int) -> Tensor:
        """Memory (max_rows, features) that operations read and write."""
        return self._keep(torch.zeros(self.max_rows, features))

    def embed(self, table: Tensor, out: Tensor, factor: float = 1.0) -> None:
        """out = factor · the rows of a table (V, D) that the tokens name."""
        self._op(OpKind.EMBED, out=out, weight=table, n=[table.shape[1], _TYPES[table.dtype]], f=[factor])

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, *, offset: float = 0.0, add: bool = False,
        barrier: bool = True,
    ) -> None:  # fmt: skip
        """Root-mean-square norm of each part of a row that has the weight's size, times offset + weight."""
        size = weight.numel()
        self._op(
            OpKind.NORM, x, out, weight.float(), n=[x.shape[1] // size, size], f=[eps, offset],
            strides=[x.stride(0), out.stride(0)], flags=_flags(add, barrier),
        )  # fmt: skip

    def linear(
        self, x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None = None, scales: Tensor | None = None,
        *, add: bool = False, barrier: bool = True,
    ) -> None:  # fmt: skip
        """out (R, N) = x (R, K) · weight (N, K)ᵀ + bias, or out += with `add`.

        A weight in int8 has scales (N, K / GROUP). `barrier`: what follows waits for it.
        """
        self._op(
            OpKind.LINEAR, x, out, weight, n=[*weight.shape, _TYPES[weight.dtype]],
            strides=[x.stride(0), out.stride(0)],
            extra=[scales, None if bias is None else bias.float()], flags=_flags(add, barrier),
        )  # fmt: skip

    def angles(self, frequencies: Tensor, scale: float, cos: Tensor, sin: Tensor) -> None:
        """Cosines and sines (R, d / 2) of position times frequency."""
        self._op(
            OpKind.ANGLES, None, cos, frequencies.double(), n=[frequencies.numel()], f=[scale], extra=[sin]
        )

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, *, barrier: bool = True) -> None:
        """Turn the heads of x by the angles, in place."""
        self._op(
            OpKind.ROTATE, cos, x, n=[x.shape[1] // head_dim, head_dim, cos.shape[1]], strides=[0, x.stride(0)],
            extra=[sin], flags=_flags(False, barrier),
        )  # fmt: skip

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, head_dim: int, window: int, scale: float,
        dtype: torch.dtype, tensor: int, cap: float = 0.0,
    ) -> None:  # fmt: skip
        """Attention over the last `window` tokens; keys and values: tensors `tensor` and the next of the state.

        Scores are capped at ±`cap`, unless it is 0.
        """
        heads, groups = q.shape[1] // head_dim, k.shape[1] // head_dim
        self._op(
            OpKind.ATTEND, q, out, n=[heads, groups, head_dim, 0, _TYPES[dtype], tensor, window],
            strides=[q.stride(0), out.stride(0), k.stride(0)], f=[scale, cap], extra=[k, v],
        )  # fmt: skip

    def gate(self, x: Tensor, up: Tensor, activation: Activation, out: Tensor) -> None:
        """out = activation(x) · up."""
        assert x.stride(0) == up.stride(0)
        self._op(
            OpKind.GATE, x, out, n=[x.shape[1], activation], strides=[x.stride(0), out.stride(0)], extra=[up]
        )

    def scale(self, x: Tensor, factor: float, out: Tensor, *, cap: float = 0.0, add: bool = False) -> None:
        """out = factor · x, capped at ±`cap` unless it is 0; or out += with `add`."""
        assert x.is_contiguous() and out.is_contiguous()
        self._op(OpKind.SCALE, x, out, n=[x.shape[1]], f=[factor, cap], flags=_flags(add, True))

    def convolve(self, x: Tensor, weight: Tensor, out: Tensor, dtype: torch.dtype, tensor: int) -> None:
        """MM-Rec's convolution with weight (taps, C), and SiLU."""
        self._op(
            OpKind.CONVOLVE, x, out, weight.float(), n=[weight.shape[1], weight.shape[0], 0, 0, _TYPES[dtype], tensor]
        )  # fmt: skip

    def recur(
        self, x: Tensor, write: Tensor, decay: Tensor, gates: Tensor, biases: Tensor, weight: Tensor, eps: float,
        out: Tensor, shape: tuple[int, int, int], tensor: int,
    ) -> None:  # fmt: skip
        """MM-Rec's recurrence with its norm and gate; shape: memories, key and value size; biases (2, M): bias and rate
        of the decay.
        """
        self._op(
            OpKind.RECUR, x, out, weight.float(), n=[*shape, 0, 0, tensor], f=[eps],
            extra=[write, decay, gates, biases.float()],
        )  # fmt: skip

    def lora(self, x: Tensor, out: Tensor) -> LoraTable:
        """out += each row's own adapter of a projection, by its place in the table that is returned."""
        table, inner = LoraTable(), self.buffer(MAX_RANK)
        self._kept.append(table)
        address = ctypes.addressof(table.array)
        self._op(
            OpKind.LORA_IN,
            x,
            inner,
            n=[x.shape[1]],
            strides=[x.stride(0), inner.stride(0)],
            weight_at=address,
        )
        self._op(
            OpKind.LORA_OUT, inner, out, n=[out.shape[1]], strides=[inner.stride(0), out.stride(0)], weight_at=address,
        )  # fmt: skip
        return table

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        adapters: Sequence[int],
        states: Sequence[StatePointers],
    ) -> None:
        """Run every operation for some rows."""
        count = len(tokens)
        if self._array is None:
            self._array = (_Op * len(self._ops))(*self._ops)
        numbers = ctypes.c_int64 * count
        of_tokens, of_positions, of_adapters = numbers(*tokens), numbers(*positions), numbers(*adapters)
        of_states = (ctypes.c_void_p * count)(*(ctypes.addressof(state.array) for state in states))
        arrays = (of_tokens, of_positions, of_adapters, of_states)
        rows = _Rows(count, *(ctypes.addressof(array) for array in arrays))
        self._library.run(
            ctypes.addressof(self._array), len(self._ops), ctypes.addressof(rows), self._threads
        )

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.device.type == "cpu" and tensor.stride(-1) == 1
        return self._keep(tensor.detach()).data_ptr()

    def _op(
        self, kind: OpKind, x: Tensor | None = None, out: Tensor | None = None, weight: Tensor | None = None,
        n: Sequence[int] = (), strides: Sequence[int] = (), f: Sequence[float] = (),
        extra: Sequence[Tensor | None] = (), flags: int = 0, weight_at: int | None = None,
    ) -> None:  # fmt: skip
        one = _Op(kind=int(kind), flags=flags, in_=self._pointer(x), out=self._pointer(out))
        one.weight = self._pointer(weight) if weight_at is None else weight_at
        one.n[: len(n)], one.strides[: len(strides)], one.f[: len(f)] = n, strides, f
        for place, tensor in enumerate(extra):
            one.extra[place] = self._pointer(tensor)
        self._ops.append(one)


class StatePointers:
    """Pointers to a sequence's tensors, which it keeps alive."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        self.tensors = list(tensors)
        self.array = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _flags(add: bool, barrier: bool) -> int:
    return _ACCUMULATE * add | _UNORDERED * (not barrier)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (N, K) as int8, and its scales (N, K / GROUP): the largest of each group of GROUP becomes ±127."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(-1).clamp(min=1e-12) / 127
    return (groups / scales[..., None]).round().to(torch.int8).flatten(1), scales
