"""The documents' model: its size, its twin from the preset, and a folder like that of any MM-Rec."""

from pathlib import Path

import torch

from mm_rec.models.loading import load_model, save_model
from mm_rec.models.mmrec_100m import MMRec100M
from mm_rec.models.presets import build, preset

SMALL = {"hidden_size": 64, "num_hidden_layers": 2}


def test_it_is_the_preset_of_about_100_million_parameters() -> None:
    model = MMRec100M(vocab_size=100256)
    assert model.num_parameters() == 107_153_152
    assert next(model.parameters()).dtype == torch.float32 and model.training
    expected = preset("mmrec_100m").config().to_dict() | {"dtype": "float32"}
    assert model.config.to_dict() == expected


def test_its_weights_are_those_that_presets_build() -> None:
    twin = build(preset("mmrec_100m").config(300, **SMALL), seed=0)
    pairs = zip(MMRec100M(300, **SMALL).parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_vocabulary_is_the_one_asked_for() -> None:
    model = MMRec100M(300, **SMALL)
    assert model.config.vocab_size == 300 and model.lm_head.weight.shape == (300, 64)
    assert model(torch.tensor([[299, 0]])).logits.shape == (1, 2, 300)
    assert MMRec100M(**SMALL).config.vocab_size == 100_256


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (MMRec100M(300, seed=seed, **SMALL).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_saves_and_loads_as_an_ordinary_mmrec(tmp_path: Path) -> None:
    model = MMRec100M(300, **SMALL).to(torch.device("cpu")).eval()
    save_model(model, None, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model) and loaded.config.architectures == ["MMRecForCausalLM"]
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
