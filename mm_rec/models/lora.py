"""LoRA (Hu et al. 2021) and its relatives as PEFT has them: settings, targets by name, and PiSSA's beginning."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mm_rec.errors import ConfigError
from mm_rec.models.sections import LoraConfig

if TYPE_CHECKING:
    import peft

TRAINED, START = (
    "default",
    "start",
)  # PEFT's names: the adapter that is trained, and the frozen beginning of PiSSA
_ALL = ("all", "all-linear")


def find_targets(model: nn.Module, targets: str) -> list[str]:
    """The names of a model's projections that "q+v" means: each part is a name as it is, or without its `_proj`.

    Raises ConfigError that lists what exists where a part matches nothing.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    there = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
    )
    parts = [part.strip() for part in re.split(r"[+,\s]+", targets) if part.strip()]
    if len(parts) == 1 and parts[0] in _ALL:
        return there
    found = []
    for part in parts:
        names = [name for name in (part, f"{part}_proj") if name in there]
        if not names:
            raise ConfigError(
                f"targets: there is no projection {part!r} in this model; there are "
                f"{', '.join(name.removesuffix('_proj') for name in there)}, or all-linear for all of them"
            )
        found += names
    if not found:
        raise ConfigError("targets: name projections, for example q+v, or all-linear")
    return list(dict.fromkeys(found))


def peft_config(model: PreTrainedModel, config: LoraConfig) -> peft.LoraConfig:
    """PEFT's configuration of a new adapter for this model; raises ConfigError for targets that it has not."""
    import peft

    trained = _embedding_and_head(model) if config.train_head else None
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.effective_alpha,  # type: ignore[arg-type]  # a number; PEFT only divides by the rank
        lora_dropout=config.dropout,
        target_modules=find_targets(model, config.targets),
        use_rslora=config.rslora,
        use_dora=config.dora,
        modules_to_save=trained,
        ensure_weight_tying=trained is not None and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )


def _embedding_and_head(model: PreTrainedModel) -> list[str]:
    """The names of embedding and head; a head that is tied to the embedding comes along with it."""
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    ends = [names[id(model.get_input_embeddings())]]
    if not model.config.tie_word_embeddings:
        ends.append(names[id(model.get_output_embeddings())])
    return ends


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's layers in a model, with their names."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


@torch.no_grad()
def init_pissa(model: nn.Module) -> None:
    """Set the trained adapter to the largest singular vectors of each weight (PiSSA, Meng et al. 2024, equations 2-4).

    The paper takes them out of the weight; here the same is done by a second, frozen adapter with the opposite sign, so
    that the weights of the model stay as they are, bit for bit.
    """
    for name, layer in lora_layers(model):
        weight = layer.get_base_layer().weight
        rank, scale = layer.r[TRAINED], layer.scaling[TRAINED]
        if rank > min(weight.shape):
            raise ConfigError(
                f"init: pissa at rank {rank}: {name} has only {min(weight.shape)} singular vectors. Choose a smaller "
                "rank, or other targets"
            )
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        for adapter in (TRAINED, START):
            layer.lora_A[adapter].weight.copy_(root[:, None] * vh[:rank])
            layer.lora_B[adapter].weight.copy_(u[:, :rank] * root)
        layer.scaling[START] = -scale


def pissa_to_lora(tensors: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """One adapter of twice the rank, for the weights as they are, from a trained PiSSA adapter and its beginning."""
    joined = dict(tensors)
    for name, tensor in start.items():
        if ".lora_A." in name:
            joined[name] = torch.cat([tensors[name], tensor], dim=0)
        elif ".lora_B." in name:
            joined[name] = torch.cat([tensors[name], -tensor], dim=1)
    return joined


def lora_to_pissa(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split what `pissa_to_lora` joined."""
    trained, start = dict(tensors), {}
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            trained[name], start[name] = tensor.chunk(2, dim=0)
        elif ".lora_B." in name:
            trained[name], negative = tensor.chunk(2, dim=1)
            start[name] = -negative
    return trained, start


def pissa_lora_alpha(config: LoraConfig) -> float:
    """The alpha with which an adapter of twice the rank has the same scale."""
    return config.effective_alpha * (math.sqrt(2) if config.rslora else 2)
