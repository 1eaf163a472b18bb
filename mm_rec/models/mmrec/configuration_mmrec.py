"""Configuration of MM-Rec (Multi-Memory Recurrence)."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MMRecConfig(PreTrainedConfig):
    """Shape of an MM-Rec model.

    Sizes are numbers of features, `window`, `chunk_size` and the two memory lengths are in tokens. Sizes left at 0
    follow from `hidden_size`. `layer_types` names the mixer of each layer, "memory" or "window"; the default
    alternates them, memory first. `memory_update` is "gated" or "delta" (the gated delta rule).
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
    memory_update: str = "gated"
    shortest_memory: float = 4.0
    longest_memory: float = 4096.0
    conv_taps: int = 4
    chunk_size: int = 64
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 64
    window: int = 128
    window_rope: bool = True
    output_gate: str = "silu"
    residual_lambdas: bool = False
    rope_theta: float = 10000.0
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
        self.num_attention_heads = self.num_attention_heads or max(1, self.hidden_size // self.head_dim)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if not self.layer_types:
            self.layer_types = [("memory", "window")[i % 2] for i in range(self.num_hidden_layers)]
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_layer_type(self) -> None:
        """Replace transformers' check of layer names: this family has its own."""
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        unknown = set(self.layer_types) - {"memory", "window"}
        if unknown:
            raise ValueError(f"layer_types knows 'memory' and 'window', not {sorted(unknown)}")

    def validate_architecture(self) -> None:
        """Raise for a shape that cannot be built, naming the field."""
        if self.memory_update not in ("gated", "delta"):
            raise ValueError(f"memory_update is 'gated' or 'delta', not {self.memory_update!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, it is {self.head_dim}")
