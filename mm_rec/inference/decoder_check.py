"""The proof that a decoder computes what its model does, on a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.inference.adapter_slots import NO_ADAPTER, AdapterSlots
from mm_rec.models.adapters import adapters_of
from mm_rec.models.families import UnsupportedModelError


@torch.inference_mode()
def verify_decoder(
    model: PreTrainedModel, slots: AdapterSlots, read: Callable[[Sequence[int], int], Tensor], allowed: float
) -> None:
    """Compare the logits (T, V) that `read` gives for tokens and a slot of adapters with the model's own.

    Raises UnsupportedModelError where they differ by more than this share, CheckpointError where they are no numbers.
    """
    adapters = adapters_of(model)
    slot = slots.slot({} if adapters is None else adapters.weights)
    trained = slot == NO_ADAPTER and slots.trained
    if slot is None or trained:
        raise UnsupportedModelError(
            "an adapter that is being trained" if trained else "an adapter of this kind"
        )
    ids = [(7 * place + 1) % model.config.vocab_size for place in range(8)]
    ours = read(ids, slot)
    whole = torch.tensor([ids], device=model.device)
    theirs = model(input_ids=whole, use_cache=False).logits[0].float().cpu()
    if not (ours - theirs).norm() <= allowed * theirs.norm():
        if not torch.isfinite(theirs).all():
            raise CheckpointError("the model's predictions are not finite numbers: its weights are damaged")
        raise UnsupportedModelError("a part of the model that changes its predictions")
