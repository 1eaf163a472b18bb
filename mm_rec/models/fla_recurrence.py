"""The recurrence of MM-Rec's memories on a GPU by flash-linear-attention, where that is installed.

Its gated delta rule in chunks is Triton code for GPUs alone. It is proven once in a process on a small problem, forward
and backward, against ours; where it is not there, fails or differs, `chunked_recurrence` is used.
"""

from __future__ import annotations

import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from mm_rec.models.mmrec import memory as memory_layer
from mm_rec.models.mmrec.recurrence import chunked_recurrence

_DEVICES = ("cuda",)
_DTYPES = (torch.bfloat16, torch.float16)  # in float32 it multiplies less exactly than that
# A document begins with empty memories: this decay leaves e⁻⁵⁰ of what was there. Larger ones would round what follows.
_FORGET = -50.0


def register() -> None:
    """Let MM-Rec models compute the recurrence by it; calling it again changes nothing."""
    memory_layer.recurrence_kernel = recurrence


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, positions: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """As `chunked_recurrence`; None where it is not known here."""
    if v.device.type not in _DEVICES or v.dtype not in _DTYPES or unavailable_reason(v.device, v.dtype):
        return None
    return _run(q, k, v, beta, log_decay, positions, state)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's compiler does not trace a cache
def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str:
    """Why it is not used, in words; nothing where it is."""
    return _prove(device, dtype)


@functools.cache
def _prove(device: torch.device, dtype: torch.dtype) -> str:
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    # In a thread of its own, which has none of the modes that this one is in: no gradients, autocast, checkpointing.
    with ThreadPoolExecutor(1) as apart:
        try:
            ours, theirs = (
                apart.submit(_trial, form, device, dtype).result() for form in (chunked_recurrence, _run)
            )
        except Exception as error:  # noqa: BLE001  # of a package that lacks a part, of Triton, of the GPU
            return f"flash-linear-attention cannot be used: {type(error).__name__}: {error}"
    for one, other in zip(ours, theirs, strict=True):
        if not (one - other).norm() <= 0.03 * one.norm():
            return "flash-linear-attention gives other results than ours"
    return ""


def _run(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, positions: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    chunk_rule: Any = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    log_decay = log_decay.float().masked_fill((positions == 0)[..., None], _FORGET)
    out, last = chunk_rule(
        q, k, v, log_decay, beta.to(v.dtype), scale=1.0, initial_state=state, output_final_state=True
    )
    return out.to(v.dtype), last.float()


def _trial(form: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What a form gives for two rows of two documents on a state, and the gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    q, k = (torch.nn.functional.normalize(random(2, 96, 2, 64), dim=-1).to(dtype) for _ in range(2))
    v, state = random(2, 96, 2, 64).to(dtype), random(2, 2, 64, 64)
    beta, log_decay = random(2, 96, 2).sigmoid(), -random(2, 96, 2).exp() / 20
    inputs = [x.requires_grad_() for x in (q, k, v, beta, log_decay, state)]
    positions = torch.cat([torch.arange(3, 43), torch.arange(56)]).expand(2, -1).to(device)
    out, last = form(*inputs[:5], positions, inputs[5])
    (out.float().square().sum() + last.square().sum()).backward()
    found = [out, last, *(x.grad for x in inputs)]
    return [x.detach().float() for x in found if x is not None]
