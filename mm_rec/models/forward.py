"""The one place that runs a model on a batch, whatever its family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.models import attention
from mm_rec.models.cross_entropy import LMHead
from mm_rec.models.mmrec.configuration_mmrec import ATTENTION, MMRecConfig
from mm_rec.models.mmrec.state import MemoryState

Batch = dict[str, Tensor]
CarriedState = MemoryState  # what goes on from row to row in training
PASS_STATES = "pass_states"  # of a batch: its rows begin on the states that others of its rows end with


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states (B, T, D) of a batch of `input_ids`, with `document_ids` and `attention_mask` if present.

    Each family gets the documents in the form that it needs (LLaMA ignores unknown keywords in silence).
    Raises ValueError for a model whose attention cannot keep documents apart.
    """
    run = model.base_model
    ids, documents, mask = batch["input_ids"], batch.get("document_ids"), batch.get("attention_mask")
    if PASS_STATES in batch:
        return read_segment(model, batch, passed_state(model, batch))[0]
    if isinstance(model.config, MMRecConfig):
        out = run(input_ids=ids, document_ids=documents, attention_mask=mask, use_cache=False)
    elif documents is None and mask is None:
        out = run(input_ids=ids, use_cache=False)
    else:
        if model.config._attn_implementation != attention.NAME:
            raise ValueError(
                "load the model with models.loading.load_model, which keeps packed documents apart"
            )
        if documents is None:
            documents = torch.zeros_like(ids)
        if mask is not None:
            documents = documents.masked_fill(mask == 0, -1)
        # With a mask of ones transformers does not look for documents itself: the attention function gets them.
        out = run(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            document_ids=documents,
            position_ids=document_positions(documents),
            use_cache=False,
        )
    hidden: Tensor = out.last_hidden_state
    return hidden


def require_packing_support(model: PreTrainedModel) -> None:
    """Prove, on a few tokens, that packed documents are read as each is alone, by the model's own attention and head.

    Raises CheckpointError for a model that cannot be run so: recurrent layers, a head with a bias.
    """
    length, training = 24, model.training
    ids = torch.arange(2 * length, device=model.device).reshape(1, -1) % model.config.vocab_size
    documents = torch.arange(2, device=model.device).repeat_interleave(length)[None]
    model.eval()
    try:
        with torch.no_grad():
            packed = lm_head_of(model).logits(
                hidden_states(model, {"input_ids": ids, "document_ids": documents})
            )
            _use_attention(model, "eager")
            alone = torch.cat(
                [model(input_ids=half, use_cache=False).logits for half in ids.split(length, 1)], dim=1
            )
    except Exception as error:  # each family has its own
        raise _packing_unsupported(model) from error
    finally:
        _use_attention(model, attention.NAME)
        model.train(training)
    if not (packed - alone).norm() <= 1e-4 * alone.norm():
        raise _packing_unsupported(model)


def _use_attention(model: PreTrainedModel, name: str) -> None:
    if not isinstance(model.config, MMRecConfig):
        model.set_attn_implementation(name)


def _packing_unsupported(model: PreTrainedModel) -> CheckpointError:
    return CheckpointError(
        f"models of the kind {model.config.model_type!r} cannot keep apart documents that share a row, or their "
        "predictions are not their last states times a matrix, so they are neither trained nor measured here. MM-Rec, "
        "LLaMA, Mistral, Qwen and Gemma models can be; docs/models.md has the others"
    )


def stateful_hidden_states(
    model: PreTrainedModel, batch: Batch, state: CarriedState | None
) -> tuple[Tensor, CarriedState]:
    """Return `hidden_states` of a batch that continues a state, and the state after it, detached.

    A row whose first document is the one that the state has read last goes on with it; all others start anew. Padding
    (a negative document) is not read. For models with a state of constant size.
    """
    documents = batch["document_ids"]
    part = {
        "input_ids": batch["input_ids"],
        "document_ids": documents,
        "attention_mask": (documents >= 0).long(),
    }
    hidden, after = read_segment(
        model, part, new_carried_state(model, len(documents)) if state is None else state
    )
    for name, tensor in after.tensors.items():
        after[name] = tensor.detach()
    return hidden, after


def require_constant_state(model: PreTrainedModel) -> MMRecConfig:
    """The configuration of a model with a state of constant size; raises ConfigError for another."""
    if isinstance(model.config, MMRecConfig) and ATTENTION not in model.config.layer_types:
        return model.config
    raise ConfigError(
        f"models of the kind {model.config.model_type!r} have no state of constant size that rows could begin on; "
        "leave --segment-len and --state-passing out"
    )


def new_carried_state(model: PreTrainedModel, rows: int) -> CarriedState:
    """The state of rows that have read nothing; raises ConfigError as `require_constant_state`."""
    return MemoryState(require_constant_state(model), rows, model.dtype, model.device)


@torch.no_grad()
def passed_state(model: PreTrainedModel, batch: Batch, segment: int | None = None) -> CarriedState:
    """The state on which each row of a batch begins: that which the row before it ends with, and the last one's.

    What it has read counts as the beginning of the row's first document. Raises ConfigError as `new_carried_state`.
    """
    rows, length = batch["input_ids"].shape
    state = new_carried_state(model, rows)
    before = {name: x.roll(1, 0) for name, x in batch.items() if x.ndim == 2}
    for start in range(0, length, segment or length):
        part = {name: x[:, start : start + (segment or length)] for name, x in before.items()}
        state = read_segment(model, part, state)[1]
    if "document_ids" in batch:
        state["document"] = batch["document_ids"][:, 0].clone()
    return state


def read_segment(model: PreTrainedModel, batch: Batch, state: CarriedState) -> tuple[Tensor, CarriedState]:
    """Return `hidden_states` of the tokens that follow on a state, and the state after them, with their gradients.

    The state that is given stays as it is, so that the segment can be read again (activation checkpointing).
    """
    out = model.base_model(
        input_ids=batch["input_ids"],
        document_ids=batch.get("document_ids"),
        attention_mask=batch.get("attention_mask"),
        past_key_values=state.shared(),
        use_cache=True,
    )
    return out.last_hidden_state, out.past_key_values


def compile_layers(model: PreTrainedModel) -> None:
    """Compile a model's layers in place, each kind once: seconds instead of the minute that the whole model takes.

    The fusion is as good, since what lies between layers is one addition. torch gives up on a layer that it has
    compiled 8 times, which rows that grow (`--seq-len-start`) and states that are passed exceed.
    """
    torch._dynamo.config.recompile_limit = 64
    for layer in _layers(model):
        layer.compile(dynamic=False)


def layers_are_compiled(model: PreTrainedModel) -> bool:
    """Return whether a model's layers are compiled."""
    return _layers(model)[0]._compiled_call_impl is not None


def uncompile_layers(model: PreTrainedModel) -> None:
    """Undo `compile_layers`."""
    for layer in _layers(model):
        layer._compiled_call_impl = None


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.base_model.layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def lm_head_of(model: PreTrainedModel) -> LMHead:
    """Return the language-model head; raises CheckpointError where it is no matrix without a bias."""
    head = model.get_output_embeddings()
    # An adapter may have a head of its own, around the model's; its `weight` is then that which is applied.
    linear = getattr(head, "original_module", head)
    if not isinstance(linear, nn.Linear) or linear.bias is not None:
        raise _packing_unsupported(model)
    weight = head.weight
    assert isinstance(weight, Tensor)
    scale = getattr(model.config, "logit_scale", None)  # Cohere multiplies by it, Granite divides by its own
    factor = scale if isinstance(scale, (int, float)) else 1 / getattr(model.config, "logits_scaling", 1)
    return LMHead(weight, factor, getattr(model.config, "final_logit_softcapping", None))


def document_positions(document_ids: Tensor) -> Tensor:
    """(B, T): each token counted from the start of its run of equal ids."""
    column = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = torch.zeros_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return column - torch.where(starts, column, 0).cummax(dim=1).values


def document_lengths(document_ids: Tensor) -> Tensor:
    """(B, T): how many tokens the run of equal ids has in which each token stands."""
    rows = torch.arange(len(document_ids), device=document_ids.device)[:, None]
    apart = document_ids + rows * (int(document_ids.max()) + 2)  # no run goes on in the next row
    _, runs, counts = torch.unique_consecutive(apart.flatten(), return_inverse=True, return_counts=True)
    lengths: Tensor = counts[runs].view_as(document_ids)
    return lengths
