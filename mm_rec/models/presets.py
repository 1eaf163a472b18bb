"""Model shapes by name: the MM-Rec ladder, each rung's hybrid and LLaMA twin, and the documents' Turkish model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from mm_rec.errors import ConfigError
from mm_rec.models import attention
from mm_rec.models.loading import register_auto_classes
from mm_rec.models.mmrec.configuration_mmrec import ATTENTION, MEMORY, MMRecConfig, MMRecHybridConfig

Family = Literal["mmrec", "mmrec_hybrid", "llama"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named shape; `minimum_tokens` is the low end of the user's documents' data budget for that size."""

    name: str
    family: Family
    vocab_size: int
    shape: dict[str, Any]

    def config(self, vocab_size: int | None = None, **changes: Any) -> PreTrainedConfig:
        """The transformers configuration, for a vocabulary of its own where one is given."""
        values = {**self.shape, "vocab_size": vocab_size or self.vocab_size, **changes}
        return _CONFIGS[self.family](**values)


def _llama_config(**values: Any) -> LlamaConfig:
    return LlamaConfig(
        **{
            "bos_token_id": None,
            "eos_token_id": None,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            **values,
        }
    )


_CONFIGS: dict[Family, Callable[..., PreTrainedConfig]] = {
    "mmrec": MMRecConfig,
    "mmrec_hybrid": MMRecHybridConfig,
    "llama": _llama_config,
}

# hidden size, layers, vocabulary: widths double and everything else follows, so each grows into the next.
_LADDER = {
    "tiny": (128, 6, 5_000),
    "mini": (256, 8, 10_000),
    "small": (512, 10, 20_000),
    "base": (1024, 12, 32_000),
    "medium": (2048, 16, 32_000),
    "7b": (4096, 32, 32_000),
    "mmrec_100m": (512, 16, 100_256),  # not on the ladder: the documents' model for the gpt-4 tokenizer
}
# The twin's intermediate size, adjusted until its parameters differ from the MM-Rec's by less than 0.5 %.
_TWIN_INTERMEDIATE = {
    "tiny": 400,
    "mini": 800,
    "small": 1584,
    "base": 3168,
    "medium": 6336,
    "7b": 12672,
    "mmrec_100m": 1584,
}


def _presets() -> dict[str, Preset]:
    presets = {}
    for name, (hidden, layers, vocabulary) in _LADDER.items():
        shape = {"hidden_size": hidden, "num_hidden_layers": layers}
        presets[name] = Preset(name, "mmrec", vocabulary, shape)
    for name, (hidden, layers, vocabulary) in _LADDER.items():
        hybrid = "hybrid_" + name.removeprefix("mmrec_")
        shape = {"hidden_size": hidden, "num_hidden_layers": layers}
        presets[hybrid] = Preset(hybrid, "mmrec_hybrid", vocabulary, shape)
    for name, (hidden, layers, vocabulary) in _LADDER.items():
        twin = "llama_" + name.removeprefix("mmrec_")
        shape = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "intermediate_size": _TWIN_INTERMEDIATE[name],
            "tie_word_embeddings": True,
        }
        presets[twin] = Preset(twin, "llama", vocabulary, shape)
    turkish = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 2048,
    }
    presets["turkish_134m"] = Preset(
        "turkish_134m", "llama", 32_000, {**turkish, "tie_word_embeddings": False}
    )
    presets["turkish_134m_tied"] = Preset(
        "turkish_134m_tied", "llama", 32_000, {**turkish, "tie_word_embeddings": True}
    )
    return presets


PRESETS: dict[str, Preset] = _presets()


def preset(name: str) -> Preset:
    """The preset of that name (hyphens and case do not matter); raises ConfigError listing the names."""
    found = PRESETS.get(name.lower().replace("-", "_"))
    if found is None:
        raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return found


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A freshly initialised model in float32, the same for the same seed on every run."""
    register_auto_classes()
    implementation = {} if isinstance(config, MMRecConfig) else {"attn_implementation": attention.NAME}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, **implementation
        )
    return model


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The size and cost of a model. Parameters and FLOPs are counts, the rest bytes.

    `flops_per_token`: of a forward pass, 2 for each multiplied weight plus the mixers' own products at 2,048 tokens.
    `state_bytes`: of one conversation, float32; `cache_bytes_per_token`: by which it grows.
    """

    parameters: int
    flops_per_token: int
    state_bytes: int
    cache_bytes_per_token: int


def measure(config: PreTrainedConfig, context: int = 2048) -> ModelSize:
    """Count a shape without allocating it (meta device)."""
    register_auto_classes()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = model.num_parameters()
    table = config.vocab_size * config.hidden_size
    multiplied = parameters if config.tie_word_embeddings else parameters - table
    attending, memory_flops, memory_bytes = config.num_hidden_layers, 0, 0
    if isinstance(config, MMRecConfig):
        memory_flops, memory_bytes = _memory_flops(config), _memory_bytes(config)
        attending = config.layer_types.count(ATTENTION)
    if not attending:
        return ModelSize(parameters, 2 * multiplied + memory_flops, memory_bytes, 0)
    heads: int = config.num_attention_heads
    # Families that have no such fields (GPT-2) share the width among their heads, each with its own keys and values.
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    cache = 4 * 2 * attending * getattr(config, "num_key_value_heads", heads) * head_dim
    attended = 2 * 2 * heads * head_dim * attending * context // 2
    return ModelSize(parameters, 2 * multiplied + memory_flops + attended, memory_bytes, cache)


def _memory_flops(config: MMRecConfig) -> int:
    """Products of the step form of a token: what each memory recalls and writes."""
    numbers = config.num_memories * config.memory_key_dim * config.memory_value_dim
    return 7 * config.layer_types.count(MEMORY) * numbers


def _memory_bytes(config: MMRecConfig) -> int:
    numbers = config.num_memories * config.memory_key_dim * config.memory_value_dim
    channels = config.num_memories * (2 * config.memory_key_dim + config.memory_value_dim)
    return 4 * config.layer_types.count(MEMORY) * (numbers + (config.conv_taps - 1) * channels)


def minimum_tokens(parameters: int) -> int:
    """The least data that the user's documents advise: 1 B tokens for 100 M parameters, 10 B for 1 B, 100 B for 7 B.

    Ten tokens a parameter up to 1 B, and in a straight line (in logarithms) to 100 B at 7 B.
    """
    if parameters <= 1_000_000_000:
        return 10 * parameters
    exponent = math.log(10) / math.log(7)
    return int(1e10 * (parameters / 1e9) ** exponent)
