"""The attention function of every family but MM-Rec's own: causal attention that never crosses a document.

Registered with transformers under the name "mmrec". For plain causal attention a T × T mask is never made: packed
documents are attended to one by one. Windows and what else a family's pattern has take transformers' mask.

Shapes: B sequences, T tokens, H heads, G key/value heads, D head size, S keys read so far.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from mm_rec.errors import CheckpointError

NAME = "mmrec"
MAX_BLOCKWISE_TOKENS = (
    1024  # tokens; beyond, the weights that the backward pass keeps would outgrow what is gained
)
_BLOCK = 128
_LONGEST_MASKED = (
    4096  # tokens of rows whose documents a GPU keeps apart by one mask instead of one call for each
)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    document_ids: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention in transformers' interface.

    query: (B, H, T, D); key: (B, G, S, D), S ≥ T; value: (B, G, S, D'); attention_mask: what `_mask` made: None, (B, S)
    with 0 for padding, or a pattern (B, 1, T, S), true where a query sees a key; document_ids: (B, T), negative for
    padding, or None for one document a row; softcap: scores s become softcap · tanh(s / softcap) (Gemma 2); s_aux: (H,)
    sinks, logits of a key that has no value (gpt-oss). Returns (B, T, H, D'). Raises CheckpointError for what a
    family's attention needs and this has not.
    """
    _refuse_unknown(kwargs)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotation leaves them wider
    pattern = attention_mask is not None and attention_mask.dim() == 4
    if query.shape[2] != key.shape[2]:
        document_ids = None  # of the new tokens alone: what was read before is one document
    if pattern or softcap is not None or s_aux is not None:
        mask = attention_mask if pattern else _causal_mask(query, key, attention_mask)
        assert mask is not None
        if mask.dtype != torch.bool:
            raise CheckpointError(
                "this model's attention adds numbers to its scores, which is not supported here"
            )
        if document_ids is not None:
            mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
        y = _masked(query, key, value, mask, scaling, softcap, s_aux)
    elif document_ids is not None:
        key, value = _repeat_kv(query, key, value)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        blocks = blocks_are_faster(query) or query.shape[-1] != value.shape[-1]
        y = (blockwise_attention if blocks else document_attention)(query, key, value, document_ids, scale)
    elif attention_mask is not None:
        y = _masked(query, key, value, _causal_mask(query, key, attention_mask), scaling)
    else:
        y = _unpadded(query, key, value, scaling)
    # Contiguous, as from transformers' own functions: some families look at it as it lies.
    return y.transpose(1, 2).contiguous(), None


# What models hand to every attention function and this one has no use for, or finds in the mask.
_KNOWN = {
    "dropout", "is_causal", "sliding_window", "position_ids", "cache_position", "output_attentions", "use_cache",
    "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch",
}  # fmt: skip


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if name not in _KNOWN and value is not None:
            raise CheckpointError(f"this model's attention needs {name!r}, which is not supported here")


def _repeat_kv(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, S, D) of every head, where heads share them by groups."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def _causal_mask(query: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
    """(B or 1, 1, T, S): each query sees what is before it and is no padding, which (B, S) has 0 for."""
    length, total = query.shape[2], key.shape[2]
    causal = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    if padding is None:
        return causal[None, None]
    own = torch.eye(length, total, dtype=torch.bool, device=query.device).roll(total - length, 1)
    return causal & (padding[:, None, None, :].bool() | own)  # a padded token sees itself: no empty row


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None,
    softcap: float | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention by a mask (B, 1, T, S), with soft caps and sinks."""
    if softcap is None and sinks is None:
        grouped = query.shape[1] != key.shape[1]
        if (
            grouped and query.shape[2] == 1
        ):  # a group's heads as queries of its key: no kernel of a GPU repeats keys
            as_queries = query.reshape(len(query), key.shape[1], -1, query.shape[3])
            y = scaled_dot_product_attention(as_queries, key, value, attn_mask=mask, scale=scaling)
            return y.reshape(*query.shape[:3], -1)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
    key, value = _repeat_kv(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(torch.float32, query.dtype)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(
        ~mask, torch.finfo(scores.dtype).min
    )  # padding may see nothing, and is no number then
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


def blocks_are_faster(query: Tensor) -> bool:
    """Return whether `blockwise_attention` is faster than the fused kernel for queries (B, H, T, D): bfloat16 on a CPU.

    Products of bfloat16 gain more than the kernel's skipping what no query sees. In float32 the kernel wins, on AVX2
    everywhere and on AVX-512 where several documents share a row.
    """
    short = query.shape[2] <= MAX_BLOCKWISE_TOKENS
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and short


def _unpadded(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention of T new tokens over S keys, no padding."""
    length, total = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    mask = None
    if 1 < length < total:
        mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=length == total and length > 1,
        scale=scaling,
        enable_gqa=grouped,
    )


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float
) -> Tensor:
    """The same as `document_attention`, by matrix products over blocks of 128 queries and the keys up to them.

    On a CPU that multiplies bfloat16 these products and the softmax between them, compiled, take half the time of the
    fused kernel.
    """
    if torch.is_grad_enabled() and query.requires_grad:
        # The weights would take T² / 2 numbers a head until the backward pass: they are made again there.
        again = torch.utils.checkpoint.checkpoint(
            _blockwise, query, key, value, document_ids, scale, use_reentrant=False, preserve_rng_state=False
        )
        assert isinstance(again, Tensor)
        return again
    return _blockwise(query, key, value, document_ids, scale)


def _blockwise(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float) -> Tensor:
    length = query.shape[2]
    wide = torch.promote_types(torch.float32, query.dtype)
    parts = []
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        scores = (query[:, :, start:stop] @ key[:, :, :stop].transpose(-1, -2)).to(wide) * scale
        same = document_ids[:, start:stop, None] == document_ids[:, None, :stop]
        causal = torch.ones(stop - start, stop, dtype=torch.bool, device=query.device).tril(start)
        weights = scores.masked_fill(~(same & causal)[:, None], -torch.inf).softmax(-1)
        parts.append(weights.to(value.dtype) @ value[:, :, :stop])
    return torch.cat(parts, dim=2)


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float
) -> Tensor:
    """Causal attention within each run of equal ids; all of (B, H, T, D), ids (B, T)."""
    if query.device.type == "cpu":
        out: Tensor = _document_attention_cpu(query, key, value, document_ids, scale)[0]
        return out
    if query.shape[2] <= _LONGEST_MASKED:
        mask = _document_mask(document_ids, query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    attended: Tensor = _document_attention_loop(query, key, value, document_ids, scale)
    return attended


_last_mask: dict[torch.dtype, tuple[weakref.ref[Tensor], Tensor]] = {}


def _document_mask(document_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T): 0 where a query sees a key of its own document, else −∞; made once for all layers of a pass.

    Numbers, since torch would make them of a boolean mask in every layer, and keep them for the backward pass.
    """
    if torch.compiler.is_compiling():
        return _new_document_mask(document_ids, dtype)
    last = _last_mask.get(dtype)
    if last is None or last[0]() is not document_ids:
        last = _last_mask[dtype] = weakref.ref(document_ids), _new_document_mask(document_ids, dtype)
    return last[1]


def _new_document_mask(document_ids: Tensor, dtype: torch.dtype) -> Tensor:
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    visible = (document_ids[:, None, :, None] == document_ids[:, None, None, :]) & causal
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _document_attention_loop(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float
) -> Tensor:
    """One call of torch's attention for each document."""
    rows: list[list[Tensor]] = [[] for _ in range(query.shape[0])]
    for row, start, stop in _document_spans(document_ids):
        q, k, v = (x[row : row + 1, :, start:stop] for x in (query, key, value))
        rows[row].append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
    return torch.cat([torch.cat(parts, dim=2) for parts in rows])


@torch.library.custom_op("mmrec::document_attention", mutates_args=())
def _document_attention_cpu(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The same as one operator, so that a compiled model keeps one graph however the documents fall.

    Returns the output and the log of the softmax's denominator (B, H, T), which the backward pass needs.
    """
    out, log_sum = _output_like(query)
    for row, start, stop in _document_spans(document_ids):
        q, k, v = (x[row : row + 1, :, start:stop] for x in (query, key, value))
        y, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
        out[row : row + 1, :, start:stop], log_sum[row : row + 1, :, start:stop] = y, log
    return out, log_sum


@torch.library.custom_op("mmrec::document_attention_backward", mutates_args=())
def _document_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum: Tensor,
    document_ids: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value."""
    gradients = _gradients_like(query, key, value)
    for row, start, stop in _document_spans(document_ids):
        part = (slice(row, row + 1), slice(None), slice(start, stop))
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient[part],
            query[part],
            key[part],
            value[part],
            out[part],
            log_sum[part],
            0.0,
            True,
            scale=scale,
        )
        for whole, one in zip(gradients, parts, strict=True):
            whole[part] = one
    return gradients


def _output_like(query: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(torch.float32, query.dtype)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    return out, torch.empty(query.shape[:3], dtype=wide, device=query.device)


def _gradients_like(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    return q, k, v


@_document_attention_cpu.register_fake
def _document_attention_shape(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return _output_like(query)


@_document_attention_backward.register_fake
def _document_attention_backward_shape(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum: Tensor,
    document_ids: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _gradients_like(query, key, value)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, document_ids, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, document_ids)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_document_attention_backward(gradient, *ctx.saved_tensors, ctx.scale), None, None)


_document_attention_cpu.register_autograd(_differentiate, setup_context=_save_for_backward)


def _document_spans(document_ids: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, stop) of each run of equal ids in (B, T)."""
    batch, length = document_ids.shape
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    flat = [*starts.flatten().nonzero()[:, 0].tolist(), batch * length]
    return [(a // length, a % length, a % length + b - a) for a, b in pairwise(flat)]


def _mask(
    *, mask_function: Callable[..., Any], q_length: int, q_offset: int = 0, attention_mask: Tensor | None = None,
    local_size: int | None = None, allow_is_causal_skip: bool = True, **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """Return the mask that `attention` needs, in transformers' interface.

    Plain causal attention, also in a window that is not passed: the (B, S) padding mask, or None where nothing is
    padded. Everything else: transformers' own mask (B, 1, T, S), true where a query sees a key.
    """
    within = local_size is not None and q_offset + q_length <= local_size
    if allow_is_causal_skip and (mask_function is causal_mask_function or within):
        if attention_mask is None:
            return None
        # A GPU would be waited for; in training documents say what is padding, and the mask is not looked at.
        looked_at = attention_mask.device.type == "cpu" or not torch.is_grad_enabled()
        return None if looked_at and bool(attention_mask.all()) else attention_mask
    return sdpa_mask(
        mask_function=mask_function, q_length=q_length, q_offset=q_offset, attention_mask=attention_mask,
        local_size=local_size, allow_is_causal_skip=False, **{**kwargs, "allow_is_bidirectional_skip": False},
    )  # fmt: skip


def register() -> None:
    """Make `attn_implementation="mmrec"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask)
