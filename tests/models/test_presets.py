"""Exact parameter counts, twins, and what a shape costs."""

import pytest
import torch

from mm_rec.errors import ConfigError
from mm_rec.models.presets import PRESETS, build, measure, minimum_tokens, preset

PARAMETERS = {
    "tiny": 1_956_888,
    "mini": 9_552_704,
    "small": 45_128_992,
    "base": 200_059_008,
    "medium": 957_288_448,
    "7b": 7_263_234_048,
    "mmrec_100m": 107_153_152,
    "hybrid_tiny": 1_938_516,
    "hybrid_base": 196_778_208,
    "llama_tiny": 1_956_480,
    "turkish_134m": 134_105_856,
    "turkish_134m_tied": 109_529_856,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_pinned(name: str) -> None:
    assert measure(preset(name).config()).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name, entry in PRESETS.items() if entry.family == "mmrec"])
def test_twins_differ_by_less_than_half_a_percent(name: str) -> None:
    own = measure(preset(name).config()).parameters
    twin = measure(preset("llama_" + name.removeprefix("mmrec_")).config()).parameters
    assert abs(own - twin) / own < 0.005


def test_state_size_is_that_of_a_real_state() -> None:
    config = preset("tiny").config()
    model = build(config, seed=0)
    state = model(torch.zeros(1, 3, dtype=torch.int64), use_cache=True).past_key_values
    assert measure(config).state_bytes == state.nbytes - 2 * 8  # the two counters of a row


def test_a_hybrid_has_less_state_and_a_cache_that_grows() -> None:
    config = preset("hybrid_tiny").config()
    size, pure = measure(config), measure(preset("tiny").config())
    state = build(config, seed=0)(torch.zeros(1, 3, dtype=torch.int64), use_cache=True).past_key_values
    assert size.cache_bytes_per_token == state.bytes_per_token > 0 == pure.cache_bytes_per_token
    assert size.state_bytes + 3 * size.cache_bytes_per_token == state.nbytes - 2 * 8
    assert size.state_bytes < pure.state_bytes


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two = (build(preset("tiny").config(100), seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_time_scales_are_spread_from_4_to_65536_tokens() -> None:
    """Over memories, then over layers; but for the first memory, whose time-scale is the shortest in each layer."""
    model = build(preset("base").config(100, num_hidden_layers=2), seed=0)
    mixers = [layer.mixer for layer in model.model.layers]
    rates = [mixer.decay_log_rate.exp() * torch.nn.functional.softplus(mixer.decay_bias) for mixer in mixers]
    found = (1 / torch.stack(rates)).log2()  # (layers, 16 memories); 14 powers of two over 32 places
    assert found[:, 0].tolist() == pytest.approx([2, 2], abs=1e-3)
    places = torch.arange(32).view(16, 2).T + 0.5
    assert torch.allclose(found[:, 1:], (2 + 14 * places / 32)[:, 1:], atol=1e-2)


def test_data_budget_of_the_methodology() -> None:
    assert minimum_tokens(100_000_000) == 1_000_000_000
    assert minimum_tokens(1_000_000_000) == 10_000_000_000
    assert minimum_tokens(7_000_000_000) == pytest.approx(100e9, rel=1e-6)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="turkish_134m"):
        preset("huge")
    assert preset("MMRec-100M".replace("MMRec", "mmrec")).name == "mmrec_100m"
