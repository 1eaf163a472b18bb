"""Adapter folders, whoever wrote them: what is in one, and what of it cannot be used here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mm_rec.errors import CheckpointError, truncated
from mm_rec.runs.files import read_json

if TYPE_CHECKING:
    import peft

BASE_FILE = "base.json"  # beside PEFT's two files: what model it belongs to
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"  # of old programs
_EMBEDDING_NAMES = ("embed_tokens.weight", "lm_head.weight")  # by the names that PEFT itself looks for
_REFUSED = {
    "layer_replication": "it makes a longer model of its base",
    "megatron_config": "it is for a model of Megatron's parts",
    "use_qalora": "it is for a base that GPTQ has quantised",
}
# How the matrices began. Any other way changes the weights of the base too, which stay as they are here.
_INIT_METHODS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_INIT_CONFIGS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
# What is the same for every adapter that `mmrec lora` trains, or is said in other words in its settings.
_IMPLIED_SETTINGS = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "use_dora",
    "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "task_type", "peft_type", "auto_mapping",
    "peft_version", "runtime_config",
}  # fmt: skip


def weights_file(folder: Path) -> Path:
    """The file of an adapter's tensors."""
    old = folder / _PICKLED
    return old if old.is_file() and not (folder / ADAPTER_WEIGHTS).is_file() else folder / ADAPTER_WEIGHTS


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """An adapter's tensors; raises CheckpointError where they are damaged, or a pickle of more than tensors."""
    file = weights_file(folder)
    if file.name == _PICKLED:
        return _unpickled(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: this is no whole adapter ({error})") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor.detach() for name, tensor in found.items()}
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{file}: it is damaged or holds more than tensors, which is not read here. Save the adapter again with a "
            f"PEFT that writes {ADAPTER_WEIGHTS}"
        ) from error


def saved_rows(folder: Path) -> int:
    """The rows of an embedding that was trained with an adapter and saved whole; 0 where none was."""
    shapes = [t.shape for name, t in read_tensors(folder).items() if name.endswith(_EMBEDDING_NAMES)]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=0)


def read_config(folder: Path) -> peft.LoraConfig:
    """PEFT's configuration of a finished adapter; raises CheckpointError naming what cannot be used here."""
    import peft

    values = _read_values(folder)
    for name, value in values.items():
        if value and (reason := _unsupported_reason(name, value)):
            raise CheckpointError(
                f"{folder}: the setting {name}={truncated(repr(value), 60)} cannot be used here: {reason}"
            )
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    # The matrices are read, so how they began is of no more interest.
    left_out = {"init_lora_weights", "base_model_name_or_path", "revision", "runtime_config", *_INIT_CONFIGS}
    try:
        config = peft.LoraConfig(**{name: values[name] for name in known - left_out if name in values})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its {ADAPTER_CONFIG} is not one that PEFT could have written ({error})"
        ) from error
    config.inference_mode = True
    return config


def _read_values(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = values.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: this is no whole adapter ({error})") from error
    if kind != "LORA":
        raise CheckpointError(f"{folder}: an adapter of the kind {kind}, and not LoRA")
    return values


def _unsupported_reason(name: str, value: Any) -> str | None:
    """Why a setting cannot be used; None where it can."""
    import peft

    field = {field.name: field for field in dataclasses.fields(peft.LoraConfig)}.get(name)
    if field is None:
        return f"peft {peft.__version__} does not know it. A newer peft may"
    if name == "task_type" and value != "CAUSAL_LM":
        return "only adapters of models that write text are read"
    if name == "init_lora_weights" and value not in _INIT_METHODS:
        return (
            "such an adapter belongs to weights that PEFT changes while it loads, and a base stays as it is here. Save "
            "it with path_initial_model_for_weight_conversion, or merge it with PEFT and give the merged model"
        )
    if field.metadata.get("is_lora_variant") and name != "use_dora":
        return "of PEFT's variants of LoRA only DoRA (use_dora) is read"
    return _REFUSED.get(name)


def saved_settings(folder: Path) -> dict[str, Any]:
    """The settings that an adapter was trained with, to go on with it; of another tool's those that it tells.

    Raises CheckpointError where it has one that training here has not.
    """
    if (folder / BASE_FILE).is_file() and "lora" in (values := read_json(folder / BASE_FILE)):
        settings: dict[str, Any] = values["lora"]
        return settings
    import peft

    config = read_config(folder)
    usual = peft.LoraConfig(inference_mode=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _IMPLIED_SETTINGS and value and value != getattr(usual, field.name):
            raise _not_trained_here(folder, field.name, value)
    targets = config.target_modules or ()
    if isinstance(targets, str) and targets != "all-linear":
        raise _not_trained_here(folder, "target_modules", targets)
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": targets if isinstance(targets, str) else "+".join(sorted(targets)),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "train_head": bool(config.modules_to_save),
    }


def _not_trained_here(folder: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the setting {name}={truncated(repr(value), 60)} is not one that mmrec lora trains with. Begin a "
        "new adapter, perhaps on a base that this one was merged into"
    )
