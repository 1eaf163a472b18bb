"""The arms of the arena: shapes that are compared at equal parameters, and sizes of them.

An arm is a family and what differs from its defaults. All arms of a size have its width, layers and vocabulary; the
width of the feed-forward layers is chosen so that the parameters are those of the size's reference, to 0.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

REFERENCE = "mmrec"
TOLERANCE = 0.005  # of the parameters


@dataclass(frozen=True)
class Size:
    """Width, layers and vocabulary."""

    hidden: int
    layers: int
    vocabulary: int


SIZES = {"2m": Size(128, 6, 4096), "9m": Size(256, 8, 8192)}  # of the arena
WIDE = Size(256, 4, 4096)  # what speed is measured with


@dataclass(frozen=True)
class Arm:
    """`config` is what differs from the family's defaults."""

    family: Literal["mmrec", "mmrec_hybrid", "llama"]
    config: dict[str, Any] = field(default_factory=dict)


# What lost is not here any more; its cells in arena/ name the commit that has it.
ARMS = {
    "llama": Arm("llama"),
    "mmrec": Arm("mmrec"),
    "hybrid": Arm("mmrec_hybrid"),
    "wide_memories": Arm("mmrec", {"memory_key_dim": 128, "memory_value_dim": 128}),
    "narrow_memories": Arm("mmrec", {"memory_key_dim": 32, "memory_value_dim": 32}),
}


def config_of(name: str, size: Size) -> Any:
    """The arm's configuration, its parameters those of the reference; ends the program where none fits."""
    if name == REFERENCE:
        return _build(name, size, size.hidden * 11 // 4)
    wanted = _parameters(_build(REFERENCE, size, size.hidden * 11 // 4))
    intermediate = size.hidden * 11 // 4
    for _ in range(4):  # parameters are a linear function of it
        found = _parameters(_build(name, size, intermediate))
        intermediate -= round((found - wanted) / (3 * size.hidden * size.layers))
    config = _build(name, size, intermediate)
    if abs(_parameters(config) - wanted) > TOLERANCE * wanted:
        raise SystemExit(f"{name} has {_parameters(config):,} parameters, the reference {wanted:,}")
    return config


def _build(name: str, size: Size, intermediate: int) -> Any:
    from transformers import LlamaConfig

    from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig, MMRecHybridConfig

    arm = ARMS[name]
    common = {
        "vocab_size": size.vocabulary, "hidden_size": size.hidden, "num_hidden_layers": size.layers,
        "intermediate_size": intermediate, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if arm.family == "llama":
        heads = size.hidden // 64
        return LlamaConfig(
            **common, num_attention_heads=heads, rms_norm_eps=1e-5, max_position_embeddings=1 << 20
        )
    family = MMRecConfig if arm.family == "mmrec" else MMRecHybridConfig
    return family(**common, **arm.config)


def _parameters(config: Any) -> int:
    from mm_rec.models.presets import measure

    return measure(config).parameters
