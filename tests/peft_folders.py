"""Adapter folders by PEFT alone, as other programs write them, on tiny models with random weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from tiny_families import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel


def save_base(family: str, folder: Path) -> None:
    """A base of a family, "tied" for a LLaMA whose head is its embedding."""
    model = tiny_model("llama" if family == "tied" else family)
    model.config.tie_word_embeddings = family == "tied" or model.config.tie_word_embeddings
    model.tie_weights()
    model.save_pretrained(folder)


def plain(folder: Path) -> PreTrainedModel:
    """The base by transformers alone."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    return model


def write_adapter(base: Path, folder: Path, seed: int = 1, **settings: Any) -> None:
    """An adapter that changes what is said: all that PEFT would train is moved at random."""
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings}
    with warnings.catch_warnings():  # PEFT's advice on what is done here on purpose
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(plain(base), peft.LoraConfig(**settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    size = float(parameter.std()) if parameter.numel() > 1 else 0.0
                    parameter.add_(0.1 * (size or 1) * torch.randn_like(parameter))
        model.save_pretrained(str(folder))


def read_by_peft(base: Path, folder: Path) -> Any:
    """Base and adapter as PEFT reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(plain(base), str(folder)).eval()


def merge_by_peft(base: Path, folder: Path) -> PreTrainedModel:
    """Base and adapter as PEFT merges them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = read_by_peft(base, folder).merge_and_unload()
    return merged


def change_config(folder: Path, **settings: Any) -> None:
    """Write other settings into an adapter's configuration, as they stand there."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
