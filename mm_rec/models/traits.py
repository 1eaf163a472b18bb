"""What the code above `models/` may ask of a model: never which family it is of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from mm_rec.models.presets import ModelSize


@dataclass(frozen=True, slots=True)
class Traits:
    """Traits of a model; the defaults are those of a transformer with a KV cache.

    `label` stands before "language model". `constant_state`: what is kept of a text does not grow with it.
    `linear_time`: a token costs the same in rows of any length. `carries_state`: in training a document can go on
    from one row to the next. `context_limit`: the most tokens that the model reads; None where there is no limit.
    """

    label: str = "A"
    constant_state: bool = False
    linear_time: bool = False
    carries_state: bool = False
    context_limit: int | None = None

    def state_text(self, size: ModelSize) -> str:
        """One line on what a model of this size remembers, for people."""
        if self.constant_state:
            return f"{size.state_bytes / 1e6:.2f} MB of state, however long the text"
        fixed = f"{size.state_bytes / 1e6:.2f} MB of state and " if size.state_bytes else ""
        return f"{fixed}{size.cache_bytes_per_token / 1e3:.1f} kB of cache for each token read"


# By transformers' model_type; what is not named has the defaults. Another package may add its own family.
FAMILY_TRAITS: dict[str, Traits] = {
    "mmrec": Traits("An MM-Rec", constant_state=True, linear_time=True, carries_state=True),
    "mmrec_hybrid": Traits("An MM-Rec hybrid"),
    "llama": Traits("A LLaMA-like"),
}


def traits_of(config: PreTrainedConfig) -> Traits:
    """The traits of a model with this configuration."""
    family = FAMILY_TRAITS.get(config.model_type, Traits())
    return replace(family, context_limit=getattr(config, "max_position_embeddings", None))
