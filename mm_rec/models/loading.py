"""Find, read and write model folders, alone or with adapters, and the documents' single `.pt` file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.logging import disable_progress_bar

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.models import attention, fla_recurrence, memory_kernel
from mm_rec.models.adapter_folders import ADAPTER_CONFIG, saved_rows
from mm_rec.models.adapters import Adapters, adapters_of, find_adapter
from mm_rec.models.hub import fetch_model, is_hub_name
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig, MMRecHybridConfig
from mm_rec.models.mmrec.modeling_mmrec import (
    MMRecForCausalLM,
    MMRecHybridForCausalLM,
    MMRecHybridModel,
    MMRecModel,
)
from mm_rec.models.resize import resize_token_embeddings
from mm_rec.runs.files import atomic_path
from mm_rec.tokenizers.loading import load_tokenizer, require_vocab_fits

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")


def register_auto_classes() -> None:
    """Register our families with the Auto classes; calling it again changes nothing."""
    for config, backbone, model in (
        (MMRecConfig, MMRecModel, MMRecForCausalLM),
        (MMRecHybridConfig, MMRecHybridModel, MMRecHybridForCausalLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, backbone, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModelForCausalLM")
    attention.register()
    memory_kernel.register()
    fla_recurrence.register()
    disable_progress_bar()  # bars for reading a file of a few megabytes stand in the way of ours


def find_model(path: Path | str) -> Path:
    """The model folder that a path means: itself, or a run's `final`, `best` or newest checkpoint, or a `.pt` file.

    What is no path here and looks like owner/name is fetched from the hub, once.
    Raises CheckpointError with what was looked for.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".pt":
        return path
    if not path.exists() and is_hub_name(path.as_posix()):
        path = fetch_model(path.as_posix())
    if not path.exists():
        made = " (mmrec quickstart makes it)" if path.parts[:1] == ("quickstart",) else ""
        raise CheckpointError(f"{path}: no model here: there is no such file or folder{made}. Check the name")
    _refuse_gguf(path)
    candidates = [path, path / "final", path / "best", path / "model"]
    candidates += sorted((path / "checkpoints").glob("step-*/model"), reverse=True)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if (path / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{path}: this is an adapter. Give the model that it belongs to, and --adapter {path}"
        )
    raise CheckpointError(
        f"{path}: no model here (looked for config.json in it, in final/, best/ and checkpoints/). "
        f"Give a model folder, a run folder, or a final_checkpoint.pt{_suggestion(path)}"
    )


def _suggestion(folder: Path) -> str:
    """The models one folder further down, as a question."""
    found = {
        config.relative_to(folder).parts[0]
        for depth in ("*", "*/final")
        for config in folder.glob(f"{depth}/config.json")
    }
    return f". Did you mean {' or '.join(str(folder / name) for name in sorted(found)[:3])}?" if found else ""


def _refuse_gguf(path: Path) -> None:
    """Raise CheckpointError for a GGUF file, or a folder that holds nothing else."""
    found = path if path.suffix == ".gguf" else next(path.glob("*.gguf"), None)
    if found is not None and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{found}: GGUF is a format for inference, with weights rounded for llama.cpp. Give the Transformers "
            "folder that it was made from (config.json, model.safetensors, tokenizer.json)"
        )


def _refuse_quantised(config: PreTrainedConfig, folder: Path) -> None:
    """Raise CheckpointError for weights that were rounded for inference (GPTQ, AWQ, bitsandbytes …)."""
    rounded = getattr(config, "quantization_config", None)
    if rounded is not None:
        method = rounded.get("quant_method", "unknown") if isinstance(rounded, dict) else "unknown"
        raise CheckpointError(
            f"{folder}: its weights are quantised ({method}), a format for inference. Give the Transformers folder of "
            "the model that it was made from"
        )


def _refuse_multimodal(config: PreTrainedConfig, folder: Path) -> None:
    """Raise CheckpointError for a model of pictures or sound too, unless transformers has one for its text alone."""
    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if config.get_text_config() is not config and (family is None or family.config_class is type(config)):
        raise CheckpointError(
            f"{folder}: models of the kind {config.model_type!r} read more than text, which is not supported "
            "here. Give a model of text alone"
        )


def _require_known(folder: Path) -> None:
    """Raise CheckpointError for a kind of model that transformers does not know: code that comes with it is not run."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # it is said where the configuration is read
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder}: transformers {transformers.__version__} knows no models of the kind {kind!r}, and code that a "
            "model brings with it is not run here"
        )


def _read_config(folder: Path) -> PreTrainedConfig:
    """A model's configuration; raises CheckpointError where it is none that is read here."""
    register_auto_classes()
    _require_known(folder)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each family checks its own, and fails in its own way
        raise CheckpointError(
            f"{folder}: the model cannot be read ({' '.join(str(error).split())})"
        ) from error
    _refuse_quantised(config, folder)
    _refuse_multimodal(config, folder)
    return config


def load_model(path: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """Read a model for evaluation or further training; documents in a batch are kept apart whatever its family."""
    folder = find_model(path)
    if folder.suffix == ".pt":
        return load_portable(folder, dtype, device)[0]
    config = _read_config(folder)
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True,
            **_attn_implementation(config),
        )  # fmt: skip
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        # KeyError: attention that is not transformers' own
        raise CheckpointError(f"{folder}: the model cannot be read ({error})") from error
    model, report = read
    if lost := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise CheckpointError(
            f"{folder}: its files lack {len(lost)} tensors of the model, {lost[0]} first. Copy the folder again"
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def load_model_and_tokenizer(
    path: Path | str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a model with the tokenizer beside it; raises TokenizerError where the two do not fit."""
    folder = find_model(path)
    if folder.suffix == ".pt":
        return load_portable(folder, dtype, device)
    # The tokenizer first: what does not fit is said before memory is filled.
    tokenizer, config = load_tokenizer(folder), _read_config(folder)
    require_vocab_fits(tokenizer, config.get_text_config().vocab_size, special=False)
    return load_model(folder, dtype, device), tokenizer


def parse_adapter(text: str) -> tuple[str, float]:
    """A folder and its weight from "FOLDER=0.5", or "FOLDER", which is applied whole."""
    name, separator, number = text.rpartition("=")
    if not separator:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(f"--adapter {text}: after the = stands a weight, like {name}=0.5")
    return name, weight


def load_with_adapters(
    base: Path | str, wanted: Sequence[str], dtype: torch.dtype = torch.float32, device: str = "cpu",
    inactive: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """Read a model, the adapters "FOLDER=WEIGHT" that are applied together, and the tokenizer that they were made with.

    `adapters_of` gives the adapters of the model, to switch and remove them. With `inactive` none is applied yet.
    """
    model, tokenizer = load_model_and_tokenizer(base, dtype)
    if not wanted:
        return model.to(device), tokenizer  # type: ignore[arg-type]
    adapters = Adapters(model, str(base))
    for text in wanted:
        name, weight = parse_adapter(text)
        folder = find_adapter(name)
        if (folder / "tokenizer_config.json").is_file() and not adapters.names:
            tokenizer = load_tokenizer(folder)
            resize_token_embeddings(model, tokenizer, lambda line: None, saved_rows(folder))
        adapters.load(_short(name, adapters.names), folder, weight)
        if inactive:
            adapters.apply({})
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def _short(path: str, taken: Sequence[str]) -> str:
    """A name for an adapter from its folder's: PEFT's names hold no dots, and no two are the same."""
    name = Path(path).resolve().name.replace(".", "_")
    count = sum(1 for known in taken if known == name or known.startswith(f"{name}-"))
    return name if not count else f"{name}-{count + 1}"


def load_weights(model: PreTrainedModel, path: Path | str) -> None:
    """Copy the weights of a model folder or run into a model; raises CheckpointError where a shape is another."""
    weights = load_model(path, model.dtype).state_dict()
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    wrong += sorted(weights.keys() - own.keys())
    if wrong:
        raise CheckpointError(
            f"{path}: its weights are of another shape ({wrong[0]} and {len(wrong) - 1} more). Begin with a model of "
            "the same size and vocabulary"
        )
    model.load_state_dict(weights)


def _attn_implementation(config: PreTrainedConfig) -> dict[str, str]:
    """Our attention, where the family's can be chosen and takes a mask of true and false, as torch's own functions do:
    plain attention (sdpa), or that with caps and sinks (flex attention).

    Other families would ignore it, or read the mask otherwise, in silence: they attend as transformers has them do.
    """
    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if isinstance(config, MMRecConfig) or family is None:
        return {}
    ours = family._can_set_attn_implementation() and (family._supports_sdpa or family._supports_flex_attn)
    return {"attn_implementation": attention.NAME} if ours else {}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write a complete Hugging Face folder, or that of the adapter which is trained on the model.

    Not atomic: write to a temporary folder and rename it.
    """
    if (adapters := adapters_of(model)) is not None:
        adapters.save(folder)
    else:
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def save_portable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the documents' `final_checkpoint.pt`: tensors, plain configuration and tokenizer text, no pickled code."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        texts = {
            n: (Path(folder) / n).read_text("utf-8")
            for n in _TOKENIZER_FILES[:3]
            if (Path(folder) / n).is_file()
        }
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    content = {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "model": tensors,
        "tokenizer": texts,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_portable(
    path: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a `final_checkpoint.pt` with `weights_only=True`; raises CheckpointError where it is not one."""
    register_auto_classes()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        values = dict(content["config"])
        tensors, texts = content["model"], content["tokenizer"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: this is not a checkpoint of mm_rec/scripts/pretrain.py ({error})"
        ) from error
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, **_attn_implementation(config)
    )
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    lost = set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if lost or unexpected:
        raise CheckpointError(
            f"{path}: tensors missing {sorted(lost)[:3]} or unknown {sorted(unexpected)[:3]}"
        )
    model.tie_weights()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, "utf-8")
        tokenizer = load_tokenizer(Path(folder))
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]
