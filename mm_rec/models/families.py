"""Families of attention models whose every trait is known, and what each computes otherwise than LLaMA.

Read from a model's configuration; a setting that is not known is refused, for it may change what no proof on a few
tokens shows. docs/models.md has what was tested of these and all other families.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedConfig

from mm_rec.models.mmrec.configuration_mmrec import MEMORY, MMRecConfig

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
NO_WINDOW = 2**31 - 1  # tokens: of a layer without a window
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")

# How a layer mixes tokens: attention, or MM-Rec's memories.
Mixer = Literal["attention", "memory"]
# Names of the norms in a layer: before attention, after it, before the MLP, after it. None where there is none.
Norms = tuple[str | None, str | None, str | None, str | None]
_BEFORE: Norms = ("input_layernorm", None, "post_attention_layernorm", None)
_AFTER: Norms = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_AROUND: Norms = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip


class UnsupportedModelError(Exception):
    """Something in this model is not known here; the text names it."""


@dataclass(frozen=True)
class KernelTraits:
    """What the kernels must know of a model beside its matrices."""

    norms: Norms
    mixers: list[Mixer]  # of each layer
    head_dim: int
    norm_offset: float = 0.0  # norms multiply by this plus their weight
    activation: str = "silu"  # transformers' name
    windows: list[int] = field(default_factory=list)  # tokens that each layer sees
    embedding_factor: float = 1.0
    residual_factor: float = 1.0  # of what attention and MLP add to the stream
    logits_factor: float = 1.0
    attention_softcap: float = 0.0  # a number s becomes cap · tanh(s / cap); with 0 it stays as it is
    logit_softcap: float = 0.0


@dataclass(frozen=True)
class _Family:
    """A family: its norms, and the settings that `_traits` reads beside those of LLaMA."""

    norms: Norms = _BEFORE
    norm_offset: float = 0.0
    settings: tuple[str, ...] = ()


_WINDOWS = ("sliding_window", "layer_types")
_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(settings=("sliding_window",)),
    "qwen2": _Family(settings=_WINDOWS),
    "qwen3": _Family(settings=_WINDOWS),
    "smollm3": _Family(settings=_WINDOWS),
    "phi3": _Family(settings=("sliding_window",)),
    "granite": _Family(settings=("embedding_multiplier", "residual_multiplier", "logits_scaling")),
    "olmo2": _Family(norms=_AFTER),
    "olmo3": _Family(norms=_AFTER, settings=_WINDOWS),
    "gemma": _Family(norm_offset=1.0),
    "gemma2": _Family(
        norms=_AROUND, norm_offset=1.0, settings=(*_WINDOWS, "attn_logit_softcapping", "final_logit_softcapping")
    ),
    "gemma3_text": _Family(norms=_AROUND, norm_offset=1.0, settings=(*_WINDOWS, "final_logit_softcapping")),
}  # fmt: skip

# Settings that need not be read: the model's modules show what they do, or decoding does not depend on them.
_NEUTRAL_SETTINGS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps tie_word_embeddings attention_bias mlp_bias query_pre_attn_scalar attention_multiplier
    no_rope_layers no_rope_layer_interval use_sliding_window max_window_layers rope_parameters hidden_act
    hidden_activation max_position_embeddings original_max_position_embeddings initializer_range use_cache
    pad_token_id bos_token_id eos_token_id pretraining_tp attention_dropout resid_pdrop embd_pdrop
"""


def kernel_traits(config: PreTrainedConfig) -> KernelTraits:
    """What the kernels must know of a model with this configuration; raises UnsupportedModelError for what is new."""
    if isinstance(config, MMRecConfig):
        norms: Norms = ("mixer_norm", None, "mlp_norm", None)
        mixers: list[Mixer] = ["memory" if kind == MEMORY else "attention" for kind in config.layer_types]
        windows = [NO_WINDOW] * config.num_hidden_layers
        return KernelTraits(norms, mixers, head_dim=getattr(config, "head_dim", 0), windows=windows)
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(f"models of the kind {config.model_type!r}")
    own = {*type(config).__dataclass_fields__} - {*PreTrainedConfig.__dataclass_fields__}
    _refuse_unknown(config, own - {*_NEUTRAL_SETTINGS.split()} - {*family.settings})
    _require_static_rope(getattr(config, "rope_parameters", None) or {})
    return _traits(config, family, _activation(config, own))


def _refuse_unknown(config: Any, names: set[str]) -> None:
    """A setting may change what no proof on a few tokens shows, as a window does: what is new here is refused."""
    for name in sorted(names):
        if getattr(config, name) not in (None, False):
            raise UnsupportedModelError(f"the setting {name} = {getattr(config, name)!r}")


def _require_static_rope(parameters: dict[str, Any]) -> None:
    """Of all layers, or of each kind of layer."""
    for one in (parameters, *parameters.values()):
        kind = one.get("rope_type", "default") if isinstance(one, dict) else "default"
        if kind not in _STATIC_ROPE:
            raise UnsupportedModelError(f"rotary positions of the kind {kind!r}")


def _activation(config: Any, own: set[str]) -> str:
    name = str(config.hidden_activation if "hidden_activation" in own else config.hidden_act)
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"the activation {name}")
    return name


def _traits(config: Any, family: _Family, activation: str) -> KernelTraits:
    read = {name: getattr(config, name) for name in family.settings}
    return KernelTraits(
        norms=family.norms,
        mixers=["attention"] * config.num_hidden_layers,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        norm_offset=family.norm_offset,
        activation=activation,
        windows=_windows(read.get("sliding_window"), read.get("layer_types"), config.num_hidden_layers),
        embedding_factor=read.get("embedding_multiplier", 1.0),
        residual_factor=read.get("residual_multiplier", 1.0),
        logits_factor=1.0 / read.get("logits_scaling", 1.0),
        attention_softcap=read.get("attn_logit_softcapping") or 0.0,
        logit_softcap=read.get("final_logit_softcapping") or 0.0,
    )


def _windows(window: int | None, kinds: list[str] | None, layers: int) -> list[int]:
    """The window is that of all layers where a family does not tell them apart."""
    kinds = kinds or ["sliding_attention"] * layers
    for kind in {*kinds} - {"sliding_attention", "full_attention"}:
        raise UnsupportedModelError(f"layers of the kind {kind!r}")
    return [window if window and kind == "sliding_attention" else NO_WINDOW for kind in kinds]
