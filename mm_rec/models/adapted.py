"""A model with adapters, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import ConfigError
from mm_rec.models.adapter_folders import saved_rows
from mm_rec.models.adapters import Adapters, find_adapter
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.models.resize import resize_token_embeddings
from mm_rec.tokenizers.loading import load_tokenizer


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
