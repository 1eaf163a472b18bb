"""A model whose vocabulary is too small grows, and nothing that it knew changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mm_rec.errors import TokenizerError
from mm_rec.models.loading import load_model, save_model
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.presets import build
from mm_rec.models.resize import align_special_tokens, resize_token_embeddings

ROWS, NEEDED = 50, 57
IDS = torch.randint(0, ROWS, (2, 9), generator=torch.Generator().manual_seed(0))


def configuration(family: str, tied: bool) -> PreTrainedConfig:
    shape = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": tied}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "mmrec":
        return MMRecConfig(**shape, memory_key_dim=16, memory_value_dim=16, chunk_size=4)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=ROWS, n_embd=32, n_layer=2, n_head=2, n_positions=64, tie_word_embeddings=tied, **none
        )
    kind = {"llama": LlamaConfig, "phi": PhiConfig}[family]
    return kind(**shape, **none, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64)


def make(family: str, tied: bool) -> PreTrainedModel:
    """A small model whose every parameter is random, biases too."""
    model = build(configuration(family, tied), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 57 ids, the last two of which are its special tokens."""
    words = {f"w{index}": index for index in range(NEEDED - 2)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        bos_token="<end>",
        eos_token="<end>",
        pad_token="<pad>",
    )


FAMILIES = pytest.mark.parametrize(
    ("family", "tied"),
    [("mmrec", True), ("mmrec", False), ("llama", True), ("llama", False), ("gpt2", True), ("phi", False)],
)


@FAMILIES
def test_old_rows_and_old_logits_stay_bit_for_bit(
    family: str, tied: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make(family, tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(IDS).logits
    said: list[str] = []
    assert resize_token_embeddings(model, tokenizer, said.append) == NEEDED - ROWS
    for name, value in model.state_dict().items():
        assert torch.equal(value[: len(before[name])], before[name]), name
    # The product of a larger matrix may be summed in another order, so the logits are held by size.
    new = model(IDS).logits
    assert new.shape[-1] == NEEDED
    assert (new[..., :ROWS] - logits).abs().max() / logits.abs().max() < 1e-6
    assert len(said) == 1 and "57 ids" in said[0] and "50" in said[0] and "enlarged by 7" in said[0]


@FAMILIES
def test_new_rows_are_the_mean_of_the_old(
    family: str, tied: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make(family, tied)
    resize_token_embeddings(model, tokenizer, lambda _: None)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert (head.weight is table) == tied
    for values in (table, head.weight, *([] if head.bias is None else [head.bias])):
        assert values.shape[0] == NEEDED
        assert torch.allclose(values[ROWS:], values[:ROWS].mean(0).expand_as(values[ROWS:]), atol=1e-7)
    # A new token's logit is the mean of the old ones, so it is never the likeliest.
    logits = model(IDS).logits
    assert torch.allclose(logits[..., ROWS], logits[..., :ROWS].mean(-1), atol=1e-5)
    assert model.config.vocab_size == NEEDED


@FAMILIES
def test_an_enlarged_model_learns_and_is_saved_as_it_is(
    family: str, tied: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make(family, tied)
    resize_token_embeddings(model, tokenizer, lambda _: None)
    align_special_tokens(model, tokenizer)
    ids = torch.full((1, 4), NEEDED - 2)
    model(ids, labels=ids).loss.backward()
    head = model.get_output_embeddings().weight
    assert head.grad is not None and head.grad[NEEDED - 2].abs().sum() > 0
    save_model(model, tokenizer, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.vocab_size == NEEDED and loaded.config.eos_token_id == NEEDED - 2
    assert torch.allclose(loaded(IDS).logits, model(IDS).logits, atol=1e-5)


def test_a_model_that_fits_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("mmrec", True)
    resize_token_embeddings(model, tokenizer, lambda _: None)
    table = model.get_input_embeddings().weight
    said: list[str] = []
    assert resize_token_embeddings(model, tokenizer, said.append) == 0
    assert model.get_input_embeddings().weight is table and not said


def test_enlarging_is_deterministic_and_leaves_the_generator_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    one = make("llama", False)
    two = copy.deepcopy(one)
    before = torch.get_rng_state()
    resize_token_embeddings(one, tokenizer, lambda _: None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    resize_token_embeddings(two, tokenizer, lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_bfloat16_and_frozen_rows_stay_what_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("llama", False).to(torch.bfloat16)
    model.get_input_embeddings().requires_grad_(False)
    resize_token_embeddings(model, tokenizer, lambda _: None)
    table = model.get_input_embeddings().weight
    assert table.dtype == torch.bfloat16 and not table.requires_grad
    expected = table[:ROWS].float().mean(0).bfloat16()
    assert torch.equal(table[ROWS:], expected.expand(NEEDED - ROWS, -1))


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_the_model_stops_as_the_tokenizer_says(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(family, True)
    resize_token_embeddings(model, tokenizer, lambda _: None)
    align_special_tokens(model, tokenizer)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (55, 55, 56)
    written = model.generate(IDS[:1], max_new_tokens=5, do_sample=False, suppress_tokens=[*range(55), 56])
    assert written[0].tolist() == [*IDS[0].tolist(), 55]


def test_a_tokenizer_that_does_not_fit_is_not_adopted(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("mmrec", True)
    with pytest.raises(TokenizerError, match="vocab_size=57 or more"):
        align_special_tokens(model, tokenizer)
    assert model.config.eos_token_id is None
