"""Sliding-window attention by bands: token t sees tokens t−W+1 … t of its own document, never through a T × T mask.

Shapes: B sequences, T tokens, H heads, G key/value heads, D head size, W window in tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def window_attention(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None,
                     positions: Tensor, window: int) -> Tensor:  # fmt: skip
    """Attention within the window, for new tokens that follow W remembered ones.

    q: (B, T, H, D); k, v: (B, T, G, D); past_k, past_v: (B, W, G, D) in order of time, newest last, or None;
    positions: (B, T), each token counted from the start of its own document. Returns (B, T, H, D).
    Queries are taken in blocks of W; a block sees itself and the W keys before it.
    """
    batch, length, heads, head_dim = q.shape
    block = min(window, length)
    missing = -length % block
    blocks = (length + missing) // block
    if past_k is None or past_v is None:
        past_k = past_v = k.new_zeros(batch, window, k.shape[2], head_dim)
    reach = blocks * block
    keys = _bands(torch.cat([past_k, k], dim=1), blocks, block, window)
    values = _bands(torch.cat([past_v, v], dim=1), blocks, block, window)
    queries = pad(q, (0, 0, 0, 0, 0, missing)).reshape(batch * blocks, block, heads, head_dim)

    distance = window + torch.arange(block, device=q.device)[:, None]
    distance = distance - torch.arange(window + block, device=q.device)[None, :]
    in_window = (distance >= 0) & (distance < window)
    place = pad(positions, (0, reach - length)).view(batch, blocks, 1, block, 1)
    mask = in_window & (place >= distance)  # (B, blocks, 1, block, W + block)
    y = scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask.view(batch * blocks, 1, block, window + block),
        enable_gqa=k.shape[2] != heads,
    )
    return y.transpose(1, 2).reshape(batch, reach, heads, head_dim)[:, :length]


def _bands(x: Tensor, blocks: int, block: int, window: int) -> Tensor:
    """(B, W + T, G, D) → (B·blocks, W + block, G, D): for each block its own tokens and the W before it."""
    x = pad(x, (0, 0, 0, 0, 0, window + blocks * block - x.shape[1]))
    return x.unfold(1, window + block, block).movedim(-1, 2).flatten(0, 1)


def ring_attention(q: Tensor, ring_k: Tensor, ring_v: Tensor, lengths: Tensor) -> Tensor:
    """Attention of one new token over the ring that already holds it.

    q: (B, 1, H, D); ring_k, ring_v: (B, W, G, D); lengths: (B,) tokens of the current document read so far, the new
    one included. Returns (B, 1, H, D).
    """
    filled = torch.arange(ring_k.shape[1], device=q.device) < lengths.clamp(min=1)[:, None]
    y = scaled_dot_product_attention(
        q.transpose(1, 2),
        ring_k.transpose(1, 2),
        ring_v.transpose(1, 2),
        attn_mask=filled[:, None, None, :],
        enable_gqa=ring_k.shape[2] != q.shape[2],
    )
    return y.transpose(1, 2)


def rotary(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, D/2) of the rotary angles (Su et al. 2021).

    Angles are computed in float64 and reduced mod 2π, so that position 100,000 is as exact as position 1.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = torch.remainder(positions[..., None].double() * theta**-exponents, 2 * math.pi)
    cos, sin = angles.cos(), angles.sin()
    return cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, T, H, D) features by their positions, halves paired as in LLaMA."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
