"""Folders that are no model to be read here: one sentence each, before memory is filled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_models import tokenizer_folder  # noqa: F401
from tiny_families import tiny_model
from transformers import AutoModelForCausalLM, Gemma3Config

from mm_rec.errors import CheckpointError, MMRecError
from mm_rec.inference.engine import Engine
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.tokenizers.loading import load_tokenizer


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A LLaMA with a tokenizer that fits it."""
    tokenizer = load_tokenizer(tokenizer_folder)
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    load_model_and_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def configured(**changes: Any) -> Callable[[Path], None]:
    """Change a folder's configuration."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def of_pictures(folder: Path) -> None:
    Gemma3Config().save_pretrained(folder)


def as_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damaged(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(b"{")

    return change


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "code": (
        configured(model_type="own", auto_map={"AutoModelForCausalLM": "own.Model"}),
        "code that a model brings",
    ),
    "gptq": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
    "awq": (configured(quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
    "bitsandbytes": (
        configured(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(bitsandbytes\)",
    ),
    "compressed": (configured(quantization_config={"quant_method": "compressed-tensors"}), "quantised"),
    "fp8": (configured(quantization_config={"quant_method": "fp8"}), r"quantised \(fp8\)"),
    "pictures": (of_pictures, "'gemma3' read more than text"),
    "GGUF": (as_gguf, "GGUF is a format for inference"),
    "no tokenizer": (without_tokenizer, "tokenizer"),
    "small vocabulary": (
        configured(vocab_size=100),
        r"the tokenizer has ids up to \d+ and the model .* of 100",
    ),
    "a number that is none": (configured(hidden_size="x"), "cannot be read"),
    "no heads": (configured(num_attention_heads=0), "cannot be read"),
    "no kind": (configured(model_type=["a"]), "knows no models of the kind"),
    "damaged configuration": (damaged("config.json"), "cannot be read"),
    "damaged tokenizer": (damaged("tokenizer.json"), "the tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_sentence_and_no_weights_are_read(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = BAD[name]
    change(folder)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read")
    )
    with pytest.raises(MMRecError, match=said) as caught:
        load_model_and_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_said(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(CheckpointError, match="the model cannot be read"):
        load_model_and_tokenizer(folder)


def test_weights_that_lack_a_tensor_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lack 1 tensors of the model, model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model_and_tokenizer(folder)


def test_a_special_token_past_the_vocabulary_is_refused_where_it_comes(folder: Path) -> None:
    """As of Gemma 3: its tokenizer has one for pictures, and its text models no row for it."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [*tokenizer.extra_special_tokens, "<image_soft_token>"]}
    )
    tokenizer.save_pretrained(folder)
    model, tokenizer = load_model_and_tokenizer(folder)
    token = tokenizer.convert_tokens_to_ids("<image_soft_token>")
    assert token == model.config.vocab_size
    session = Engine(model).session()
    session.prefill(tokenizer("Ayşe").input_ids)
    with pytest.raises(MMRecError, match=f"there is no token {token}: this model's go from 0 to"):
        session.prefill([token])
