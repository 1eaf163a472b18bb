"""Models as programs of the kernels: LLaMA and its kin, and MM-Rec."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.inference.native.program import GROUP, LoraTable, Program, quantised
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mmrec")
_ENDLESS = 2**31 - 1
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class NotDescribedError(Exception):
    """The kernels have no operation for something in this model; the text names it."""


class Description:
    """A model's program, and where its logits appear.

    int8: matrices are kept as bytes with a scale for every 64 weights (embedding apart); else they are the model's own.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int, threads: int, int8: bool = False) -> None:
        self.config: Any = model.config
        self.dtype = next(model.parameters()).dtype
        self._require(model)
        self._int8 = int8
        self.adapted: list[
            tuple[LoraLayer, LoraTable]
        ] = []  # PEFT's layers, and where the kernels look for theirs
        self.program = Program(max_rows, threads)
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size
        self._x, self._normed = self.program.buffer(hidden), self.program.buffer(hidden)
        self.logits = self.program.buffer(vocabulary)
        self._gate, self._up = (self.program.buffer(self.config.intermediate_size) for _ in range(2))
        self._tensors = 0  # of the state, so far
        body: Any = model.base_model
        table = _own(body.embed_tokens)
        if type(table) is not nn.Embedding:
            raise NotDescribedError(f"an embedding of the kind {type(table).__name__}")
        self.program.embed(table.weight, self._x)
        self._mmrec() if isinstance(self.config, MMRecConfig) else self._llama(body)
        for layer in body.layers:
            if isinstance(self.config, MMRecConfig):
                self._mixer(layer.mixer, layer.mixer_norm)
                self._mlp(layer.mlp, layer.mlp_norm)
            else:
                self._attention(layer.self_attn, layer.input_layernorm)
                self._mlp(layer.mlp, layer.post_attention_layernorm)
        self._norm(body.norm)
        head: Any = model.get_output_embeddings()
        self._linear(self._normed, head, self.logits)

    def _require(self, model: PreTrainedModel) -> None:
        if self.config.model_type not in _FAMILIES:
            raise NotDescribedError(f"models of the kind {self.config.model_type!r}")
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise NotDescribedError(f"weights in {self.dtype}")
        if model.device.type != "cpu":
            raise NotDescribedError(f"the device {model.device.type}")
        if isinstance(self.config, MMRecConfig):
            return
        if self.config.hidden_act != "silu":
            raise NotDescribedError(f"the activation {self.config.hidden_act}")
        kind = (self.config.rope_parameters or {}).get("rope_type", "default")
        if kind not in _STATIC_ROPE:
            raise NotDescribedError(f"rotary positions of the kind {kind!r}")

    # --- parts that both families have --------------------------------------------------------------------------------

    def _linear(self, x: Tensor, module: Any, out: Tensor, *, add: bool = False, last: bool = True) -> None:
        adapted, plain = isinstance(module, LoraLayer), _own(module)
        if type(plain) is not nn.Linear:
            raise NotDescribedError(f"a matrix of the kind {type(plain).__name__}")
        weight, scales = plain.weight, None
        if self._int8 and weight.shape[1] % GROUP == 0:
            weight, scales = quantised(weight)
        self.program.linear(x, weight, out, plain.bias, scales, add=add, last=last or adapted)
        if adapted:
            self.adapted.append((module, self.program.lora(x, out)))

    def _norm(self, module: Any) -> None:
        """The residual stream, normed, into its buffer."""
        norm = _own(module)
        self.program.norm(self._x, norm.weight, _epsilon(norm), self._normed)

    def _mlp(self, mlp: Any, norm: Any) -> None:
        self._norm(norm)
        self._linear(self._normed, mlp.gate_proj, self._gate, last=False)
        self._linear(self._normed, mlp.up_proj, self._up)
        self.program.gate(self._gate, self._up, self._gate)
        self._linear(self._gate, mlp.down_proj, self._x, add=True)

    def _positions(self, frequencies: Tensor, scale: float) -> None:
        half = frequencies.numel()
        self._cos, self._sin = self.program.buffer(half), self.program.buffer(half)
        self.program.angles(frequencies, scale, self._cos, self._sin)

    def _attend(self, mixer: Any, head_dim: int, places: int, window: int, scale: float) -> None:
        """Queries, keys and values of the normed stream, rotated; attention; its output added to the stream."""
        self._linear(self._normed, mixer.q_proj, self._q, last=False)
        self._linear(self._normed, mixer.k_proj, self._k, last=False)
        self._linear(self._normed, mixer.v_proj, self._v)
        for norm, part in (
            (_own(getattr(mixer, "q_norm", None)), self._q),
            (_own(getattr(mixer, "k_norm", None)), self._k),
        ):
            if norm is not None:
                self.program.norm(part, norm.weight, _epsilon(norm), part)
        self.program.rotate(self._q, self._cos, self._sin, head_dim, last=False)
        self.program.rotate(self._k, self._cos, self._sin, head_dim)
        state = self._take_tensors(2)  # keys, values
        self.program.attend(
            self._q, self._k, self._v, self._y, head_dim, places, window, scale, self.dtype, state
        )
        self._linear(self._y, mixer.o_proj, self._x, add=True)

    def _take_tensors(self, count: int) -> int:
        first, self._tensors = self._tensors, self._tensors + count
        return first

    def _attention_buffers(self, head_dim: int) -> None:
        width, narrow = self.config.num_attention_heads * head_dim, self.config.num_key_value_heads * head_dim
        self._q, self._y = self.program.buffer(width), self.program.buffer(width)
        self._k, self._v = self.program.buffer(narrow), self.program.buffer(narrow)

    # --- LLaMA --------------------------------------------------------------------------------------------------------

    def _llama(self, body: Any) -> None:
        attention = body.layers[0].self_attn
        self._attention_buffers(attention.head_dim)
        self._positions(body.rotary_emb.inv_freq, body.rotary_emb.attention_scaling)

    def _attention(self, attention: Any, norm: Any) -> None:
        self._norm(norm)
        # A layer may say itself whether it has a window; where it does not, the model's is that of all layers.
        window = getattr(attention, "sliding_window", getattr(self.config, "sliding_window", None))
        self._attend(attention, attention.head_dim, _ENDLESS, window or _ENDLESS, attention.scaling)

    # --- MM-Rec -------------------------------------------------------------------------------------------------------

    def _mmrec(self) -> None:
        config = self.config
        self._attention_buffers(config.head_dim)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self._positions(config.rope_theta**-exponents, 1.0)
        self._keys = config.num_memories * config.memory_key_dim
        self._values = config.num_memories * config.memory_value_dim
        channels = 2 * self._keys + self._values
        self._projected, self._mixed = self.program.buffer(channels), self.program.buffer(channels)
        self._write, self._decay = (self.program.buffer(config.num_memories) for _ in range(2))
        self._gates, self._recalled = self.program.buffer(self._values), self.program.buffer(self._values)

    def _mixer(self, mixer: Any, norm: Any) -> None:
        self._norm(norm)
        if hasattr(mixer, "conv_weight"):
            self._memory(mixer)
        else:
            window = self.config.window
            self._attend(mixer, self.config.head_dim, window, window, self.config.head_dim**-0.5)

    def _memory(self, memory: Any) -> None:
        config, keys, values = self.config, self._keys, self._values
        q, k, v = self._projected.split([keys, keys, values], dim=1)
        for module, out in ((memory.q_proj, q), (memory.k_proj, k), (memory.v_proj, v), (memory.g_proj, self._gates),
                            (memory.write_proj, self._write)):  # fmt: skip
            self._linear(self._normed, module, out, last=False)
        self._linear(self._normed, memory.decay_proj, self._decay)
        state = self._take_tensors(2)  # memory, conv
        self.program.convolve(self._projected, memory.conv_weight, self._mixed, self.dtype, state + 1)
        biases = torch.stack([memory.write_bias, memory.decay_bias, memory.decay_log_rate.float().exp()])
        shape = (config.num_memories, config.memory_key_dim, config.memory_value_dim)
        self.program.recur(
            self._mixed, self._write, self._decay, self._gates, biases, _own(memory.norm).weight, memory.norm.eps,
            self._recalled, shape, config.memory_update == "delta", state,
        )  # fmt: skip
        self._linear(self._recalled, memory.o_proj, self._x, add=True)


def _own(module: Any) -> Any:
    """A part of the model itself, without what the adapters have put around it and each other."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _own(module.original_module)
    return _own(module.get_base_layer()) if isinstance(module, LoraLayer) else module


def _epsilon(norm: Any) -> float:
    """Ours and transformers' norms name it differently."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)
