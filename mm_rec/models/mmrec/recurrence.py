"""The recurrence of MM-Rec's memories, the gated delta rule (Yang et al. 2024), in two forms with one result.

Shapes: B sequences, T tokens, M memories, K key size, V value size, C tokens in a chunk, N chunks.

    S_t = γ_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ
    y_t = S_tᵀ q_t

`positions` counts each token from the start of its own document, tokens read in earlier segments included. It alone
says what may be seen: token i sees a token (or the incoming state) that lies d tokens back when `positions[i] >= d`.
A document start is thus a mask and never a value of γ.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    positions: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read tokens one by one: the specification, and the form used for decoding.

    q, k: (B, T, M, K); v: (B, T, M, V); beta, log_decay (= log γ ≤ 0): (B, T, M); positions: (B, T) int64;
    state: (B, M, K, V), at least float32, None for empty memories. Returns y (B, T, M, V) and the last state.
    """
    dtype = torch.promote_types(torch.float32, v.dtype)
    q, k, v_in = q.to(dtype), k.to(dtype), v.to(dtype)
    beta, decay = beta.to(dtype), log_decay.to(dtype).exp()
    batch, length, memories, key_dim = q.shape
    if state is None:
        state = q.new_zeros(batch, memories, key_dim, v.shape[-1])
    outputs = []
    for t in range(length):
        starts = (positions[:, t] == 0)[:, None, None, None]
        state = decay[:, t, :, None, None] * state.masked_fill(starts, 0.0)
        written = v_in[:, t] - torch.einsum("bmkv,bmk->bmv", state, k[:, t])
        state = state + torch.einsum("bmk,bmv->bmkv", beta[:, t, :, None] * k[:, t], written)
        outputs.append(torch.einsum("bmkv,bmk->bmv", state, q[:, t]))
    return torch.stack(outputs, dim=1).to(v.dtype), state


def chunked_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    positions: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The same recurrence by matrix products within chunks and one state between chunks: O(T·C) work.

    Arguments and results as in `step_recurrence`; the matrix products run in the dtype of v, decays and state in
    float32 (float64 for float64 inputs).
    """
    dtype = torch.promote_types(torch.float32, v.dtype)
    batch, length, memories, key_dim = q.shape
    if state is None:
        state = torch.zeros(batch, memories, key_dim, v.shape[-1], dtype=dtype, device=v.device)
    q, k, v, beta, log_decay, positions = _pad_to_chunks(q, k, v, beta, log_decay, positions, chunk_size)
    q, k, v = (_chunks(x, chunk_size) for x in (q, k, v))  # (B, M, N, C, K or V)
    beta = _chunks(beta.to(dtype), chunk_size)  # (B, M, N, C)
    c = _chunks(log_decay.to(dtype), chunk_size).cumsum(-1)  # (B, M, N, C), starts anew in each chunk
    position = positions.view(batch, 1, -1, chunk_size)  # (B, 1, N, C)

    index = torch.arange(chunk_size, device=q.device)
    distance = index[:, None] - index[None, :]
    visible = (distance >= 0) & (position[..., None] >= distance)  # (B, 1, N, C, C)
    # Masked before the exponential: above the diagonal it would overflow and turn gradients into NaN.
    decay = (c[..., :, None] - c[..., None, :]).masked_fill(~visible, -torch.inf).exp()
    from_state = c.masked_fill(
        position <= index, -torch.inf
    ).exp()  # how much of the incoming state token i sees
    to_state, carried = decay[..., -1, :], from_state[..., -1]  # what reaches the end of the chunk

    write, erase = _writes(k, v, beta, decay, from_state)
    keys_out = (k * to_state[..., None].to(k.dtype)).transpose(-1, -2)  # (B, M, N, K, C)
    added = (keys_out @ write).to(dtype)  # (B, M, N, K, V)

    incoming = []
    for n in range(added.shape[2]):
        incoming.append(state)
        change = added[:, :, n] - keys_out[:, :, n].to(dtype) @ (erase[:, :, n] @ state)
        state = carried[:, :, n, None, None] * state + change
    states = torch.stack(incoming, dim=2)  # (B, M, N, K, V)

    write = write - (erase @ states).to(write.dtype)
    states = states.to(v.dtype)
    scores = (q @ k.transpose(-1, -2)) * decay.to(q.dtype)
    y = scores.to(v.dtype) @ write + (q * from_state[..., None].to(q.dtype)).to(v.dtype) @ states
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, -1, memories, v.shape[-1])
    return y[:, :length], state


def _pad_to_chunks(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, positions: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fill T up to whole chunks with tokens that write nothing and forget nothing (β = 0, γ = 1)."""
    missing = -q.shape[1] % chunk_size
    if not missing:
        return q, k, v, beta, log_decay, positions
    pad = torch.nn.functional.pad
    tail = positions[:, -1:] + 1 + torch.arange(missing, device=positions.device)
    wide = (0, 0, 0, 0, 0, missing)
    narrow = (0, 0, 0, missing)
    return (
        pad(q, wide), pad(k, wide), pad(v, wide),
        pad(beta, narrow), pad(log_decay, narrow), torch.cat([positions, tail], dim=1),
    )  # fmt: skip


def _chunks(x: Tensor, chunk_size: int) -> Tensor:
    """(B, T, M, …) → (B, M, N, C, …)."""
    chunks: Tensor = x.unflatten(1, (-1, chunk_size)).movedim(3, 1)
    return chunks


def _writes(k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, from_state: Tensor) -> tuple[Tensor, Tensor]:
    """What each token of a chunk writes, as write − erase @ S for the incoming state S.

    With u_t = β_t (v_t − γ_t S_{t−1}ᵀ k_t) the rule is S_t = γ_t S_{t−1} + k_t u_tᵀ, so within a chunk
    (I + A) U = β V − (β · from_state) K S, A_ij = β_i decay_ij (k_i·k_j) for j < i: one triangular solve.
    Returns write (B, M, N, C, V) and erase (B, M, N, C, K).
    """
    keys = k.to(decay.dtype)
    overlap = (beta[..., None] * decay * (keys @ keys.transpose(-1, -2))).tril(-1)
    identity = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    right = torch.cat([v.to(decay.dtype) * beta[..., None], keys * (beta * from_state)[..., None]], dim=-1)
    solved = torch.linalg.solve_triangular(identity + overlap, right, upper=False, unitriangular=True)
    write, erase = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    return write.to(v.dtype), erase
