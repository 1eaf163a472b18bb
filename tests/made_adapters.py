"""Adapters that change what a model says, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mm_rec.models.adapters import Adapters
from mm_rec.models.lora import lora_layers
from mm_rec.models.sections import LoraConfig


def with_adapters(
    model: PreTrainedModel, tmp_path: Path, names: str = "ab", first: str = "q+v", **changes: Any
) -> Adapters:
    """Trained adapters on a model, loaded under these names: one of some projections, then one of all."""
    for number, name in enumerate(names):
        made = Adapters(model, "base")
        made.train(
            LoraConfig(rank=4 + 3 * number, alpha=8, targets=(first, "all-linear")[number], **changes), number
        )
        with torch.no_grad():
            for _, layer in lora_layers(model):
                for matrix in layer.lora_B.values():
                    matrix.weight.add_(0.2 * torch.randn_like(matrix.weight))
        made.save(tmp_path / name)
        made.unload()
    adapters = Adapters(model, "base")
    for name in names:
        adapters.load(name, tmp_path / name)
    return adapters
