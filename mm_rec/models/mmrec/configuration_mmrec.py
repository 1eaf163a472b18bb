"""Configurations of MM-Rec (Multi-Memory Recurrence) and of its hybrid with attention."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MEMORY, ATTENTION = "linear_attention", "full_attention"  # kinds of layers, by transformers' names
LAST_WITH_WINDOWS = "MM-Rec 0.2 (commit ed81d4b)"  # the last version that reads the former architecture


@strict
class MMRecConfig(PreTrainedConfig):
    """Shape of an MM-Rec model: every layer has memories, so the state has a constant size.

    Sizes are numbers of features, `chunk_size` and the two memory lengths are in tokens. Sizes left at 0 follow from
    `hidden_size`. `layer_types` follows from the family.
    """

    model_type = "mmrec"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 5000
    hidden_size: int = 128
    intermediate_size: int = 0
    num_hidden_layers: int = 6
    layer_types: list[str] = field(default_factory=list)
    num_memories: int = 0
    memory_key_dim: int = 64
    memory_value_dim: int = 64
    shortest_memory: float = 4.0
    longest_memory: float = 65536.0
    conv_taps: int = 4
    chunk_size: int = 64
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.intermediate_size = self.intermediate_size or self.hidden_size * 11 // 4
        self.num_memories = self.num_memories or max(1, self.hidden_size // self.memory_value_dim)
        given, self.layer_types = self.layer_types, self._layer_types()
        self._require_layers(given, kwargs.pop("memory_update", None))
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def _layer_types(self) -> list[str]:
        return [MEMORY] * self.num_hidden_layers

    def _require_layers(self, given: list[str], update: str | None) -> None:
        """Raise for layers that are not the family's; those of a former checkpoint may be the same by another name."""
        if update == "gated" or "window" in given or ("memory" in given and update is None):
            raise ValueError(
                f"this model has windows of attention, or memories without the delta rule: {LAST_WITH_WINDOWS} was "
                "the last version to read it. Install that, or train the model anew"
            )
        former = update == "delta" and set(given) == {"memory"}
        if given and not former and given != self.layer_types:
            raise ValueError(f"layer_types of this family are {self.layer_types}, not {given}")


@strict
class MMRecHybridConfig(MMRecConfig):
    """Shape of an MM-Rec hybrid: each `full_attention_interval`-th layer attends to all tokens, without positions.

    For finding what was read once among much, where a state of constant size must forget; its cache grows.
    """

    model_type = "mmrec_hybrid"

    full_attention_interval: int = 4
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_attention_heads = self.num_attention_heads or max(1, self.hidden_size // self.head_dim)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        super().__post_init__(**kwargs)

    def _layer_types(self) -> list[str]:
        every = self.full_attention_interval
        return [
            ATTENTION if every and i % every == every - 1 else MEMORY for i in range(self.num_hidden_layers)
        ]

    def validate_architecture(self) -> None:
        """Raise for a shape that cannot be built, naming the field."""
        if not 1 <= self.full_attention_interval <= self.num_hidden_layers:
            raise ValueError(
                f"full_attention_interval must be 1 to num_hidden_layers ({self.num_hidden_layers}), it is "
                f"{self.full_attention_interval}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
