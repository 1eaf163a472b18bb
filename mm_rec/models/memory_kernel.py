"""The memory layer of MM-Rec between its projections as one native operation, forward and backward.

What `MMRecMemory` computes after its projections: causal convolution, SiLU, normalised queries and
keys, `chunked_recurrence`, the norm of what is read, the output gate. All of it in float32 in the processor's cache,
where torch would write each part to memory; kept for the backward pass is the state before each chunk alone. The
gradient is derived by hand (mm_rec/native/memory.cpp); the tests compare it with that of the step form.

Shapes: B sequences, T tokens, M memories, K key size, V value size, W taps, C tokens in a chunk, N chunks.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.models.mmrec import memory as memory_layer
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.native.library import NoCompilerError, native_library

# Tokens: 16 is hardly faster and keeps twice as many states, more are slower (bench/memory_layer.py).
CHUNK = 32
_MAX_TAPS = 8
_VECTOR = 16  # floats of the widest register: sizes are multiples of it, whatever the processor
_DTYPES = (torch.float32, torch.bfloat16)
# torch's cache of compiled code knows an operation by its name alone: this changes with what goes in and comes out.
_NAMES = "mm_rec_2"


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "memories", "key", "value", "chunk", "taps")),
        ("norm_eps", ctypes.c_float),
    )  # fmt: skip


class _Arrays(ctypes.Structure):
    """As in memory.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "q", "k", "v", "gate", "write", "log_decay", "positions", "conv_weight", "norm_weight", "history", "state",
            "out", "last_state", "states", "out_grad", "last_state_grad", "q_grad", "k_grad", "v_grad",
            "gate_grad", "write_grad", "log_decay_grad", "conv_weight_grad", "norm_weight_grad", "history_grad",
            "state_grad",
        )
    )  # fmt: skip


def register() -> None:
    """Let MM-Rec models compute their memory layers by the kernel; calling it again changes nothing."""
    memory_layer.memory_kernel = memory


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's compiler does not trace a cache
def unavailable_reason() -> str:
    """Why there is no kernel here, in words; nothing where there is one. Compiles it at the first call on a machine."""
    try:
        native_library("memory")
    except NoCompilerError as error:
        return str(error)
    return ""


def kernel_missing(model: PreTrainedModel) -> str:
    """Why a model's memory layers are not computed by the kernel on this machine; nothing where they are."""
    uses_it = isinstance(model.config, MMRecConfig) and model.device.type == "cpu"
    return unavailable_reason() if uses_it else ""


def memory(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, write: Tensor, log_decay: Tensor, positions: Tensor,
    conv_weight: Tensor, norm_weight: Tensor, history: Tensor | None, state: Tensor | None, norm_eps: float,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """What a memory layer gives to its last projection (B, T, M·V), and the last state (B, M, K, V) float32.

    q, k: (B, T, M·K); v, gate: (B, T, M·V), all of one dtype, float32 or bfloat16; write (β), log_decay (log γ ≤ 0):
    (B, T, M) float32; positions: (B, T) int64, as in recurrence.py; conv_weight: (W, M·(2K + V)) float32; norm_weight:
    (V,); history: (B, W − 1, M·(2K + V)), what stood before, of the dtype of q; state: (B, M, K, V) float32. None where
    the kernel does not know it: another device or dtype, sizes that are no multiples of 16, no compiler.
    """
    memories, value = write.shape[-1], norm_weight.shape[0]
    key = q.shape[-1] // memories
    same = all(x.dtype == q.dtype for x in (k, v, gate)) and (history is None or history.dtype == q.dtype)
    wide = all(x.dtype == torch.float32 for x in (write, log_decay, conv_weight, norm_weight))
    if (
        q.device.type != "cpu" or q.dtype not in _DTYPES or not (same and wide)
        or key % _VECTOR or value % _VECTOR or conv_weight.shape[0] > _MAX_TAPS or unavailable_reason()
    ):  # fmt: skip
        return None
    inputs = (q, k, v, gate, write, log_decay, positions, conv_weight, norm_weight, history, state)
    found = _memory_forward(*inputs, norm_eps, torch.is_grad_enabled())
    return found[0], found[1]


_Inputs = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None
]


@torch.library.custom_op(f"{_NAMES}::memory_forward", mutates_args=(), device_types="cpu")
def _memory_forward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, write: Tensor, log_decay: Tensor, positions: Tensor,
    conv_weight: Tensor, norm_weight: Tensor, history: Tensor | None, state: Tensor | None,
    norm_eps: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what `memory` returns, and for the backward pass the state before each chunk (B, M, N, K, V)."""
    inputs = _contiguous(q, k, v, gate, write, log_decay, positions, conv_weight, norm_weight, history, state)
    shape = _shape(inputs, norm_eps)
    out, last, states = _allocate(inputs, keep)
    _call("memory_forward", shape, q.dtype, [*inputs, out, last, states if keep else None])
    return out, last, states


@_memory_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, _, keep = arguments
    return _allocate(cast(_Inputs, tuple(inputs)), keep)


def _allocate(inputs: _Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, _, v, _, write, _, _, _, norm_weight = inputs[:9]
    batch, length, memories = write.shape
    key, value, chunks = q.shape[-1] // memories, norm_weight.shape[0], -(-length // CHUNK)
    new = write.new_empty
    states = new((batch, memories, chunks, key, value) if keep else (0,))
    return v.new_empty(v.shape), new((batch, memories, key, value)), states


@torch.library.custom_op(f"{_NAMES}::memory_backward", mutates_args=(), device_types="cpu")
def _memory_backward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, write: Tensor, log_decay: Tensor, positions: Tensor,
    conv_weight: Tensor, norm_weight: Tensor, history: Tensor | None, state: Tensor | None,
    states: Tensor, out_grad: Tensor, last_state_grad: Tensor | None,
    norm_eps: float,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of q, k, v, gate, write, log_decay, conv_weight, norm_weight, state, and of a history."""
    inputs = _contiguous(q, k, v, gate, write, log_decay, positions, conv_weight, norm_weight, history, state)
    shape = _shape(inputs, norm_eps)
    grads = _allocate_grads(inputs)
    conv_grads = conv_weight.new_zeros(
        shape.batch, *conv_weight.shape
    )  # of each sequence, so that none waits
    norm_grads = norm_weight.new_empty(shape.batch * shape.memories, shape.value)
    last = None if last_state_grad is None else last_state_grad.contiguous()
    known = [*inputs, None, None, states, out_grad.contiguous(), last]
    history_grad = grads[9] if history is not None else None
    _call(
        "memory_backward",
        shape,
        q.dtype,
        [*known, *grads[:6], conv_grads, norm_grads, history_grad, grads[8]],
    )
    torch.sum(conv_grads, 0, out=grads[6])
    torch.sum(norm_grads, 0, out=grads[7])
    return grads


@_memory_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return _allocate_grads(cast(_Inputs, arguments[:11]))


def _allocate_grads(inputs: _Inputs) -> list[Tensor]:
    q, k, v, gate, write, log_decay, _, conv_weight, norm_weight, history, _ = inputs
    batch, _, memories = write.shape
    state = write.new_empty(batch, memories, q.shape[-1] // memories, norm_weight.shape[0])
    alike = [q, k, v, gate, write, log_decay, conv_weight, norm_weight, state]
    return [x.new_empty(x.shape) for x in ([*alike, history] if history is not None else alike)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.norm_eps, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, out_grad: Tensor | None, last_grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    *inputs, states = ctx.saved_tensors
    if out_grad is None:
        out_grad = torch.zeros_like(inputs[3])
    grads = _memory_backward(*inputs, states, out_grad, last_grad, ctx.norm_eps)
    q, k, v, gate, write, log_decay, conv_weight, norm_weight, state, *history = grads
    return (
        q, k, v, gate, write, log_decay, None, conv_weight, norm_weight, *(history or [None]),
        None if inputs[10] is None else state, None, None,
    )  # fmt: skip


_memory_forward.register_autograd(_backward, setup_context=_setup)


def _contiguous(*tensors: Tensor | None) -> _Inputs:
    return cast(_Inputs, tuple(None if tensor is None else tensor.contiguous() for tensor in tensors))


def _shape(inputs: _Inputs, norm_eps: float) -> _Shape:
    q, _, _, _, write, _, _, conv_weight, norm_weight = inputs[:9]
    batch, length, memories = write.shape
    key, value = q.shape[-1] // memories, norm_weight.shape[0]
    return _Shape(batch, length, memories, key, value, CHUNK, conv_weight.shape[0], norm_eps)


def _call(name: str, shape: _Shape, dtype: torch.dtype, tensors: list[Tensor | None]) -> None:
    arrays = _Arrays(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
    call = getattr(native_library("memory"), name)
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int], None
    call(ctypes.byref(shape), ctypes.byref(arrays), int(dtype == torch.bfloat16), torch.get_num_threads())
