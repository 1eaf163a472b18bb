"""The other mixer of the hybrid: attention to every token of the document, without positions (NoPE).

Shapes: B sequences, T tokens, D hidden size, H heads, G key/value heads, P places of the cache that are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .configuration_mmrec import MMRecHybridConfig
from .forward_context import ForwardContext, take_columns
from .norm import MMRecRMSNorm


class MMRecAttention(nn.Module):
    """Causal attention with normed queries and keys; the memories below it know the order of the tokens."""

    use_rope = False

    def __init__(self, config: MMRecHybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.head_dim, self.scaling = layer_idx, config.head_dim, config.head_dim**-0.5
        width = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        v = self.v_proj(x).view(heads)
        q, k = self.q_norm(self.q_proj(x).view(heads)), self.k_norm(self.k_proj(x).view(heads))
        if context.state is not None:
            k, v = self._remember("keys", k, context), self._remember("values", v, context)
        y = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=context.visible,
            scale=self.scaling,
            enable_gqa=k.shape[2] != q.shape[2],
        )
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _remember(self, kind: str, new: Tensor, context: ForwardContext) -> Tensor:
        """Add new keys or values (B, T, G, ·) to the cache; returns those of before and these, (B, P + T, G, ·)."""
        assert context.state is not None and context.kept is not None and context.visible is not None
        name = f"{self.layer_idx}.{kind}"
        before = context.visible.shape[-1] - new.shape[1]
        timeline = torch.cat([context.state[name][:, :before].to(new.dtype), new], dim=1)
        context.state[name] = take_columns(timeline, context.kept).to(context.state[name].dtype)
        return timeline
