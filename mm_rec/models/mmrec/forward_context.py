"""The context of a forward pass: positions within documents, padding, and the state to continue.

Shapes: B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .configuration_mmrec import ATTENTION, MMRecConfig
from .state import MemoryState


class ForwardContext(NamedTuple):
    """The context of a forward pass that every layer needs.

    positions: (B, T) int64, counted from the start of each token's document, tokens read earlier included.
    valid: (B, T) bool, valid tokens first in each row; None where all are.
    counts: (B,) int64 valid tokens a row; lengths: (B,) int64 tokens read before of the document that goes on; both
    None where nothing is carried (training).
    visible, kept: of models with attention, see `_attention_context`.
    """

    positions: Tensor
    valid: Tensor | None
    counts: Tensor | None
    lengths: Tensor | None
    visible: Tensor | None = None
    kept: Tensor | None = None


def make_context(
    config: MMRecConfig,
    x: Tensor,
    valid: Tensor | None,
    document_ids: Tensor | None,
    state: MemoryState | None,
) -> ForwardContext:
    """Build the context: positions within documents, and what follows from them."""
    batch, length, _ = x.shape
    column = torch.arange(length, device=x.device).expand(batch, length)
    carried = torch.zeros_like(column[:, :1]) if state is None else state["lengths"][:, None]
    if document_ids is None:
        positions = column + carried
    else:
        before = document_ids[:, :1] if state is None else state["document"][:, None]
        starts = document_ids != torch.cat([before, document_ids[:, :-1]], dim=1)
        begin = torch.where(starts, column, -carried).cummax(dim=1).values
        positions = column - begin
    counts = None
    if state is not None:
        counts = column.new_full((batch,), length) if valid is None else valid.sum(-1)
    context = ForwardContext(positions, valid, counts, None if state is None else state["lengths"])
    return _attention_context(context) if ATTENTION in config.layer_types else context


def _attention_context(context: ForwardContext) -> ForwardContext:
    """Add what layers with attention need: which places of the past (P) and which new tokens each new one sees.

    visible: (B, 1, T, P + T) bool. kept: (B, S) int64, which of these P + T the cache holds afterwards: the tokens of
    the current document, in order; None where nothing is carried.
    """
    positions, lengths = context.positions, context.lengths
    index = torch.arange(positions.shape[1], device=positions.device)
    distance = index[:, None] - index
    visible = (distance >= 0) & (positions[..., None] >= distance)  # (B, T, T)
    if lengths is None:
        return context._replace(visible=visible[:, None])
    after = final_lengths(context)
    assert context.counts is not None
    place = torch.arange(int(lengths.max()), device=positions.device)
    goes_on = positions > index if len(place) else positions < 0  # the document that was read before
    past = goes_on[..., None] & (place < lengths[:, None])[:, None]  # (B, T, P)
    begin = (after - context.counts)[
        :, None
    ]  # the place of the first new token, were it of the last document
    place = torch.arange(int(after.max()), device=positions.device)[None]
    kept = torch.where(place >= begin, len(past[0, 0]) + place - begin, place).clamp(
        max=past.shape[-1] + len(index) - 1
    )
    return context._replace(visible=torch.cat([past, visible], dim=-1)[:, None], kept=kept)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where the inputs are."""
    return torch.promote_types(torch.float32, dtype)


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x: (B, S, …), columns: (B, W) → (B, W, …), for each row its own columns."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], columns]


def last_columns(timeline: Tensor, counts: Tensor | None, keep: int) -> Tensor:
    """The last `keep` columns of (B, keep + T, …) when only the first counts[b] of the T new ones are there."""
    if counts is None:
        return timeline[:, timeline.shape[1] - keep :]
    return take_columns(timeline, counts[:, None] + torch.arange(keep, device=timeline.device))


def final_lengths(context: ForwardContext) -> Tensor:
    """(B,) tokens of the current document after the pass."""
    assert context.lengths is not None and context.counts is not None
    last = (context.counts - 1).clamp(min=0)[:, None]
    ended = context.positions.gather(1, last)[:, 0] + 1
    return torch.where(context.counts > 0, ended, context.lengths)


def update_state(state: MemoryState, context: ForwardContext, document_ids: Tensor | None) -> None:
    """Update the counts and document ids of the state."""
    assert context.counts is not None
    state["lengths"] = final_lengths(context)
    if document_ids is not None:
        last = document_ids.gather(1, (context.counts - 1).clamp(min=0)[:, None])[:, 0]
        state["document"] = torch.where(context.counts > 0, last, state["document"])
    state.seen += context.positions.shape[1]


def pad_right(
    x: Tensor, document_ids: Tensor | None, present: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Move the tokens that are there to the front of each row, so that padding stands only at the end.

    Returns x (B, T, D), document_ids (B, T), valid (B, T) and the order (B, T): new column j was column order[j].
    Columns behind the last valid token get its document, so that they start no new one.
    """
    order = (~present).to(torch.int8).argsort(dim=1, stable=True)
    valid = present.gather(1, order)
    x = x.gather(1, order[..., None].expand_as(x))
    if document_ids is not None:
        last = (valid.sum(1, keepdim=True) - 1).clamp(min=0)
        document_ids = document_ids.gather(1, order)
        document_ids = torch.where(valid, document_ids, document_ids.gather(1, last))
    return x, document_ids, valid, order
