"""The mixer of MM-Rec: several memories that forget at different speeds.

Shapes: B sequences, T tokens, D hidden size, M memories, K key size, V value size, C convolved features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, silu, softplus

from .configuration_mmrec import MMRecConfig
from .forward_context import ForwardContext, last_columns, wide_dtype
from .norm import MMRecRMSNorm
from .recurrence import chunked_recurrence, step_recurrence
from .state import LayerState

# A faster form of the memory layer for this machine, which the project registers; see `MMRecMemory._mix_fast`.
memory_kernel: Callable[..., tuple[Tensor, Tensor] | None] | None = None
# The same of the recurrence alone, in the arguments of `step_recurrence`.
recurrence_kernel: Callable[..., tuple[Tensor, Tensor] | None] | None = None


class Projected(NamedTuple):
    """What a memory layer makes of each token: q, k (B, T, M·K), v, gate (B, T, M·V), β and log γ (B, T, M)."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor
    beta: Tensor
    log_decay: Tensor


class MMRecMemory(nn.Module):
    """The memories: the gated delta rule with a matrix state for each memory (Gated DeltaNet, Yang et al. 2024)."""

    def __init__(self, config: MMRecConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.num_memories = config, layer_idx, config.num_memories
        keys = config.num_memories * config.memory_key_dim
        values = config.num_memories * config.memory_value_dim
        self.q_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, values, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, values, bias=False)
        self.o_proj = nn.Linear(values, config.hidden_size, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(config.conv_taps, 2 * keys + values))
        self.write_proj = nn.Linear(config.hidden_size, config.num_memories, bias=False)
        self.decay_proj = nn.Linear(config.hidden_size, config.num_memories, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(config.num_memories))
        self.decay_log_rate = nn.Parameter(torch.empty(config.num_memories))
        # Queries count as divided by √K, as in Qwen3.5; before a norm that is its eps times K.
        self.norm = MMRecRMSNorm(config.memory_value_dim, config.rms_norm_eps * config.memory_key_dim)

    def forward(
        self, x: Tensor, context: ForwardContext, before: LayerState | None
    ) -> tuple[Tensor, LayerState | None]:
        """(B, T, D) → (B, T, D), and the state after the tokens where there is one before them."""
        features = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.g_proj(x)
        projected = Projected(*features, *self._gates(x, context.valid))
        y, memory = self._mix_fast(projected, context, before) or self._mix(projected, context, before)
        out: Tensor = self.o_proj(y)
        if before is None:
            return out, None
        history = torch.cat([before["conv"].to(x.dtype), torch.cat(projected[:3], dim=-1)], dim=1)
        conv = last_columns(history, context.counts, self.config.conv_taps - 1).to(before["conv"].dtype)
        return out, {"memory": memory, "conv": conv}

    def _mix_fast(
        self, projected: Projected, context: ForwardContext, before: LayerState | None
    ) -> tuple[Tensor, Tensor] | None:
        """What `_mix` computes, by the kernel; None where there is none for this."""
        q = projected.q
        if memory_kernel is None or q.shape[1] == 1:
            return None
        history, memory = (None, None) if before is None else (before["conv"].to(q.dtype), before["memory"])
        return memory_kernel(
            *projected, context.positions, self.conv_weight, self.norm.weight, history, memory, self.norm.eps
        )

    def _mix(
        self, projected: Projected, context: ForwardContext, before: LayerState | None
    ) -> tuple[Tensor, Tensor]:
        """From the projections to what the last one reads, (B, T, M·V), and the memories after it (B, M, K, V)."""
        q, k, v, gate, beta, log_decay = projected
        config, dtype = self.config, q.dtype
        heads = (*q.shape[:2], config.num_memories, -1)
        keys = q.shape[-1]
        mixed = silu(self._convolve(torch.cat([q, k, v], dim=-1), context, before))
        q, k, v = mixed.split([keys, keys, v.shape[-1]], dim=-1)
        q = normalize(q.view(heads), dim=-1).to(dtype)
        k = normalize(k.view(heads), dim=-1).to(dtype)
        v = v.view(heads).to(dtype)
        memory = None if before is None else before["memory"]
        inputs = q, k, v, beta, log_decay, context.positions, memory
        if q.shape[1] == 1:
            y, memory = step_recurrence(*inputs)
        else:
            found = None if recurrence_kernel is None else recurrence_kernel(*inputs)
            y, memory = found or chunked_recurrence(*inputs, config.chunk_size)
        return (self.norm(y) * silu(gate).view(heads)).flatten(2), memory

    def _gates(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write gate β and log forget gate log γ, (B, T, M) float32: 0 and 0 for tokens that are not valid."""
        wide = wide_dtype(x.dtype)
        beta = torch.sigmoid(self.write_proj(x).to(wide))
        log_decay = -self.decay_log_rate.to(wide).exp() * softplus(
            self.decay_proj(x).to(wide) + self.decay_bias
        )
        if valid is not None:
            beta, log_decay = beta * valid[..., None], log_decay * valid[..., None]
        return beta, log_decay

    def _convolve(self, x: Tensor, context: ForwardContext, before: LayerState | None) -> Tensor:
        """Causal depthwise convolution (B, T, C), in float32 at least, within each document."""
        taps, wide, length = self.config.conv_taps, wide_dtype(x.dtype), x.shape[1]
        past = pad(x[:, :0], (0, 0, taps - 1, 0)) if before is None else before["conv"].to(x.dtype)
        history = torch.cat([past, x], dim=1)
        mixed = x.to(wide) * self.conv_weight[-1]
        for back in range(1, taps):
            seen = (context.positions >= back)[..., None]
            start = taps - 1 - back
            mixed = mixed + history[:, start : start + length].to(wide) * self.conv_weight[-1 - back] * seen
        return mixed
