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
from .state import LayerState


class MMRecAttention(nn.Module):
    """Causal attention with normed queries and keys; the memories below it know the order of the tokens."""

    use_rope = False

    def __init__(self, config: MMRecHybridConfig) -> None:
        super().__init__()
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        width = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, context: ForwardContext, before: LayerState | None
    ) -> tuple[Tensor, LayerState | None]:
        """(B, T, D) → (B, T, D), and the cache after the tokens where there is one before them."""
        heads = (*x.shape[:2], -1, self.head_dim)
        v = self.v_proj(x).view(heads)
        q, k = self.q_norm(self.q_proj(x).view(heads)), self.k_norm(self.k_proj(x).view(heads))
        after = None
        if before is not None:
            k, keys = _remember(before["keys"], k, context)
            v, values = _remember(before["values"], v, context)
            after = {"keys": keys, "values": values}
        y = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=context.visible,
            scale=self.scaling,
            enable_gqa=k.shape[2] != q.shape[2],
        )
        return self.o_proj(y.transpose(1, 2).flatten(2)), after


def _remember(cache: Tensor, new: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
    """Old and new keys or values together, (B, P + T, G, ·), and what the cache keeps of them."""
    assert context.kept is not None and context.visible is not None
    before = context.visible.shape[-1] - new.shape[1]
    timeline = torch.cat([cache[:, :before].to(new.dtype), new], dim=1)
    return timeline, take_columns(timeline, context.kept).to(cache.dtype)
