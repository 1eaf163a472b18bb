"""Models as programs of the kernels: LLaMA and its kin, and MM-Rec."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.inference.native.program import GROUP, Activation, LoraTable, Program, quantize_int8
from mm_rec.models.families import UnsupportedModelError, kernel_traits


class GraphBuilder:
    """A model's program, and where its logits appear.

    int8: matrices are kept as bytes with a scale for every 64 weights (embedding apart); else they are the model's own.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int, threads: int, int8: bool = False) -> None:
        self.config: Any = model.config
        self.dtype = next(model.parameters()).dtype
        self._traits = kernel_traits(self.config)
        self._require(model)
        self._int8 = int8
        self.adapted: list[
            tuple[LoraLayer, LoraTable]
        ] = []  # PEFT's layers, and where the kernels look for theirs
        self.program = Program(max_rows, threads)
        self._state_tensors = 0  # of the state, so far
        self._rotary_tables: dict[str, tuple[Tensor, Tensor]] = {}  # cosines and sines of a kind of layer
        body: Any = model.base_model
        self._buffers()
        self._embed(body.embed_tokens)
        for number, layer in enumerate(body.layers):
            self._layer(layer, number, body)
        self._norm(body.norm, self._x, self._normed)
        head = model.get_output_embeddings()
        self._linear(self._normed, head, self.logits)
        factor, cap = self._traits.logits_factor, self._traits.logit_softcap
        if factor != 1.0 or cap:
            self.program.scale(self.logits, factor, self.logits, cap=cap)

    def _require(self, model: PreTrainedModel) -> None:
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise UnsupportedModelError(f"weights in {self.dtype}")
        if model.device.type != "cpu":
            raise UnsupportedModelError(f"the device {model.device.type}")

    def _buffers(self) -> None:
        """Those that every layer uses anew; parts of one buffer where a family has one matrix for them."""
        config, buffer, head_dim = self.config, self.program.buffer, self._traits.head_dim
        self._x, self._normed = buffer(config.hidden_size), buffer(config.hidden_size)
        self.logits = buffer(config.vocab_size)
        self._gate_up = buffer(2 * config.intermediate_size)
        self._gate, self._up = self._gate_up.chunk(2, dim=1)
        if "attention" in self._traits.mixers:
            width, narrow = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
            self._qkv, self._y = buffer(width + 2 * narrow), buffer(width)
            self._q, self._k, self._v = self._qkv.split([width, narrow, narrow], dim=1)
        if "memory" in self._traits.mixers:
            self._memory_buffers()

    # --- parts that all families have ---------------------------------------------------------------------------------

    def _embed(self, embedding: Any) -> None:
        embedding = _unwrap(embedding)
        scale = getattr(embedding, "embed_scale", None)  # Gemma's, in the dtype of its weights
        if type(embedding) is not nn.Embedding and scale is None:
            raise UnsupportedModelError(f"an embedding of the kind {type(embedding).__name__}")
        factor = self._traits.embedding_factor if scale is None else float(scale.to(self.dtype))
        self.program.embed(embedding.weight, self._x, factor)

    def _layer(self, layer: Any, number: int, body: Any) -> None:
        before, after, before_mlp, after_mlp = (name and getattr(layer, name) for name in self._traits.norms)
        x = self._residual_input(before)
        y, out = self._mix(layer, x, number, body)
        self._add_to_residual(y, out, after)
        self._mlp(layer.mlp, self._residual_input(before_mlp), after_mlp)

    def _mix(self, layer: Any, x: Tensor, number: int, body: Any) -> tuple[Tensor, Any]:
        """What a layer makes of x and the tokens before it, before the output matrix; and that matrix."""
        mixer = self._traits.mixers[number]
        if mixer == "memory":
            return self._memory(layer.mixer, x)
        attention = layer.mixer if hasattr(layer, "mixer") else layer.self_attn
        return self._attention(attention, x, number, getattr(body, "rotary_emb", None))

    def _residual_input(self, norm: Any) -> Tensor:
        """The residual stream, normed where there is a norm."""
        if norm is None:
            return self._x
        self._norm(norm, self._x, self._normed)
        return self._normed

    def _add_to_residual(self, y: Tensor, out: Any, norm: Any) -> None:
        """Add the output projection of y to the residual stream, normed or scaled where the family does so."""
        factor = self._traits.residual_factor
        plain = norm is None and factor == 1.0
        self._linear(y, out, self._x if plain else self._normed, add=plain)
        if norm is not None:
            self._norm(norm, self._normed, self._x, add=True)
        elif not plain:
            self.program.scale(self._normed, factor, self._x, add=True)

    def _linear(
        self, x: Tensor, module: Any, out: Tensor, *, add: bool = False, barrier: bool = True
    ) -> None:
        adapted, plain = isinstance(module, LoraLayer), _unwrap(module)
        if type(plain) is not nn.Linear:
            raise UnsupportedModelError(f"a matrix of the kind {type(plain).__name__}")
        weight, scales = plain.weight, None
        if self._int8 and weight.shape[1] % GROUP == 0:
            weight, scales = quantize_int8(weight)
        self.program.linear(x, weight, out, plain.bias, scales, add=add, barrier=barrier or adapted)
        if adapted:
            self.adapted.append((module, self.program.lora(x, out)))

    def _norm(self, norm: Any, x: Tensor, out: Tensor, *, add: bool = False, barrier: bool = True) -> None:
        norm, offset = _unwrap(norm), self._traits.norm_offset
        self.program.norm(x, norm.weight, _norm_eps(norm), out, offset=offset, add=add, barrier=barrier)

    def _projections(
        self, x: Tensor, module: Any, parts: dict[str, Tensor], fused: str, whole: Tensor
    ) -> None:
        """Several projections of x: by a matrix each, or by one of that name (Phi 3)."""
        if hasattr(module, fused):
            self._linear(x, getattr(module, fused), whole)
            return
        for place, (name, out) in enumerate(parts.items()):
            self._linear(x, getattr(module, name), out, barrier=place + 1 == len(parts))

    def _mlp(self, mlp: Any, x: Tensor, norm: Any) -> None:
        parts = {"gate_proj": self._gate, "up_proj": self._up}
        self._projections(x, mlp, parts, "gate_up_proj", self._gate_up)
        self.program.gate(self._gate, self._up, Activation[self._traits.activation], self._gate)
        self._add_to_residual(self._gate, mlp.down_proj, norm)

    def _attention(self, attention: Any, x: Tensor, number: int, rotary: Any) -> tuple[Tensor, Any]:
        """As `_mix`: queries, keys and values of x, normed and turned by their positions where that is done."""
        parts = {"q_proj": self._q, "k_proj": self._k, "v_proj": self._v}
        self._projections(x, attention, parts, "qkv_proj", self._qkv)
        if hasattr(attention, "q_norm"):
            self._norm(attention.q_norm, self._q, self._q, barrier=False)
            self._norm(attention.k_norm, self._k, self._k)
        if getattr(attention, "use_rope", True):  # not in each layer of SmolLM 3, nor in ours
            rope = self._layer_rotary(rotary, number)
            self.program.rotate(self._q, *rope, attention.head_dim, barrier=False)
            self.program.rotate(self._k, *rope, attention.head_dim)
        self.program.attend(
            self._q, self._k, self._v, self._y, attention.head_dim, self._traits.windows[number], attention.scaling,
            self.dtype, self._next_state(2), self._traits.attention_softcap,
        )  # fmt: skip
        return self._y, attention.o_proj

    def _layer_rotary(self, rotary: Any, number: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of a layer, computed where they are needed first.

        They are shared by all layers, or by those of its kind (Gemma 3, OLMo 3).
        """
        kind = "" if hasattr(rotary, "inv_freq") else f"{self.config.layer_types[number]}_"
        if kind not in self._rotary_tables:
            frequencies: Tensor = getattr(rotary, f"{kind}inv_freq")
            cos, sin = (self.program.buffer(frequencies.numel()) for _ in range(2))
            self.program.angles(frequencies, getattr(rotary, f"{kind}attention_scaling"), cos, sin)
            self._rotary_tables[kind] = cos, sin
        return self._rotary_tables[kind]

    def _next_state(self, count: int) -> int:
        first, self._state_tensors = self._state_tensors, self._state_tensors + count
        return first

    # --- MM-Rec -------------------------------------------------------------------------------------------------------

    def _memory_buffers(self) -> None:
        config = self.config
        self._keys = config.num_memories * config.memory_key_dim
        self._values = config.num_memories * config.memory_value_dim
        channels = 2 * self._keys + self._values
        self._projected, self._mixed = self.program.buffer(channels), self.program.buffer(channels)
        self._write, self._decay = (self.program.buffer(config.num_memories) for _ in range(2))
        self._gates, self._recalled = self.program.buffer(self._values), self.program.buffer(self._values)

    def _memory(self, mixer: Any, x: Tensor) -> tuple[Tensor, Any]:
        """As `_mix`."""
        self._memory_ops(mixer, x)
        return self._recalled, mixer.o_proj

    def _memory_ops(self, memory: Any, x: Tensor) -> None:
        config, keys, values = self.config, self._keys, self._values
        q, k, v = self._projected.split([keys, keys, values], dim=1)
        for module, out in ((memory.q_proj, q), (memory.k_proj, k), (memory.v_proj, v), (memory.g_proj, self._gates),
                            (memory.write_proj, self._write)):  # fmt: skip
            self._linear(x, module, out, barrier=False)
        self._linear(x, memory.decay_proj, self._decay)
        state = self._next_state(2)  # memory, conv
        self.program.convolve(self._projected, memory.conv_weight, self._mixed, self.dtype, state + 1)
        biases = torch.stack([memory.decay_bias, memory.decay_log_rate.float().exp()])
        shape = (config.num_memories, config.memory_key_dim, config.memory_value_dim)
        self.program.recur(
            self._mixed, self._write, self._decay, self._gates, biases, _unwrap(memory.norm).weight, memory.norm.eps,
            self._recalled, shape, state,
        )  # fmt: skip


def _unwrap(module: Any) -> Any:
    """A part of the model itself, without what the adapters have put around it and each other."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _unwrap(module.original_module)
    return _unwrap(module.get_base_layer()) if isinstance(module, LoraLayer) else module


def _norm_eps(norm: Any) -> float:
    """Ours and transformers' norms name it differently."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)
