"""The fingerprint that tells one model's weights from another's."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel

_SAMPLES = 1024  # numbers of each tensor that are hashed


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return a digest of names, shapes and about 1,024 numbers of each tensor.

    The numbers are rounded to bfloat16, so a model read in half precision has the fingerprint of the whole one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].to(torch.bfloat16).cpu()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(picked.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
