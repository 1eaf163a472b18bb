"""MM-Rec, a causal language model with a state of constant size, as an ordinary transformers model.

Shapes: B sequences, T tokens, D hidden size, M memories, K key size, V value size, H heads, G key/value heads.
The files of this folder import only torch, transformers and each other, and travel with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, pad, silu, softplus
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_mmrec import MMRecConfig
from .forward_context import (
    ForwardContext,
    final_lengths,
    last_columns,
    make_context,
    pad_right,
    take_columns,
    update_state,
    wide_dtype,
)
from .recurrence import chunked_recurrence, step_recurrence
from .state import MemoryState
from .window import ring_attention, rotate, window_attention

# A faster form of the memory layer for this machine, which the project registers; see `MMRecMemory._mix_fast`.
memory_kernel: Callable[..., tuple[Tensor, Tensor] | None] | None = None


class MMRecRMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; same shape and dtype."""
        wide = x.to(wide_dtype(x.dtype))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


class MMRecMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: MMRecConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MMRecMemory(nn.Module):
    """The long-term memories: a gated linear recurrence with a matrix state for each memory."""

    def __init__(self, config: MMRecConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        keys = config.num_memories * config.memory_key_dim
        values = config.num_memories * config.memory_value_dim
        self.q_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, values, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, values, bias=False)
        self.o_proj = nn.Linear(values, config.hidden_size, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(config.conv_taps, 2 * keys + values))
        self.write_proj = nn.Linear(config.hidden_size, config.num_memories, bias=False)
        self.decay_proj = nn.Linear(config.hidden_size, config.num_memories, bias=False)
        delta = config.memory_update == "delta"
        self.write_bias = None if delta else nn.Parameter(torch.zeros(config.num_memories))
        self.decay_bias = nn.Parameter(torch.empty(config.num_memories))
        self.decay_log_rate = nn.Parameter(torch.empty(config.num_memories))
        # With the delta rule queries count as divided by √K, as in Qwen3.5; before a norm that is its eps times K.
        eps = config.rms_norm_eps * (config.memory_key_dim if delta else 1)
        self.norm = MMRecRMSNorm(config.memory_value_dim, eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        q, k, v, gate = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.g_proj(x)
        beta, log_decay = self._gates(x, context.valid)
        y = self._mix_fast(q, k, v, gate, beta, log_decay, context)
        if y is None:
            y = self._mix(q, k, v, gate, beta, log_decay, context)
        out: Tensor = self.o_proj(y)
        return out

    def _mix_fast(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        beta: Tensor,
        log_decay: Tensor,
        context: ForwardContext,
    ) -> Tensor | None:
        """What `_mix` computes, by the kernel; None where there is none for this."""
        if (
            memory_kernel is None
            or self.config.memory_update != "delta"
            or q.shape[1] == 1
            or self.config.output_gate != "silu"
        ):
            return None
        state, history, before = context.state, None, None
        if state is not None:
            history, before = state[f"{self.layer_idx}.conv"].to(q.dtype), state[f"{self.layer_idx}.memory"]
        found = memory_kernel(
            q, k, v, gate, beta, log_decay, context.positions, self.conv_weight, self.norm.weight, history, before,
            self.norm.eps,
        )  # fmt: skip
        if found is None:
            return None
        y, after = found
        if state is not None:
            self._keep_history(torch.cat([q, k, v], dim=-1), context)
            state[f"{self.layer_idx}.memory"] = after
        return y

    def _mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        beta: Tensor,
        log_decay: Tensor,
        context: ForwardContext,
    ) -> Tensor:
        """From the projections (B, T, M·K or M·V) to what the last projection reads, (B, T, M·V)."""
        config, dtype = self.config, q.dtype
        heads = (*q.shape[:2], config.num_memories, -1)
        keys = q.shape[-1]
        mixed = silu(self._convolve(torch.cat([q, k, v], dim=-1), context))
        q, k, v = mixed.split([keys, keys, v.shape[-1]], dim=-1)
        q = normalize(q.view(heads), dim=-1).to(dtype)
        k = normalize(k.view(heads), dim=-1).to(dtype)
        y = self._recur(q, k, v.view(heads).to(dtype), beta, log_decay, context)
        opened = silu(gate) if config.output_gate == "silu" else torch.sigmoid(gate)
        out: Tensor = (self.norm(y) * opened.view(heads)).flatten(2)
        return out

    def _gates(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write gate β and log forget gate log γ, (B, T, M) float32: 0 and 0 for tokens that are not valid."""
        wide = wide_dtype(x.dtype)
        wish = self.write_proj(x).to(wide)
        beta = torch.sigmoid(wish if self.write_bias is None else wish + self.write_bias)
        log_decay = -self.decay_log_rate.to(wide).exp() * softplus(
            self.decay_proj(x).to(wide) + self.decay_bias
        )
        if valid is not None:
            beta, log_decay = beta * valid[..., None], log_decay * valid[..., None]
        return beta, log_decay

    def _convolve(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Causal depthwise convolution (B, T, C), in float32 at least, within each document."""
        taps, state = self.config.conv_taps, context.state
        if state is None:
            history = pad(x, (0, 0, taps - 1, 0))
        else:
            history = torch.cat([state[f"{self.layer_idx}.conv"].to(x.dtype), x], dim=1)
        if state is not None:
            self._keep_history(x, context)
        wide = wide_dtype(x.dtype)
        length = x.shape[1]
        mixed = x.to(wide) * self.conv_weight[-1]
        for back in range(1, taps):
            seen = (context.positions >= back)[..., None]
            start = taps - 1 - back
            mixed = mixed + history[:, start : start + length].to(wide) * self.conv_weight[-1 - back] * seen
        return mixed

    def _keep_history(self, x: Tensor, context: ForwardContext) -> None:
        """Keep the last inputs of the convolution (B, T, C) in the state."""
        name, state = f"{self.layer_idx}.conv", context.state
        assert state is not None
        timeline = torch.cat([state[name].to(x.dtype), x], dim=1)
        state[name] = last_columns(timeline, context.counts, self.config.conv_taps - 1).to(state[name].dtype)

    def _recur(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, context: ForwardContext
    ) -> Tensor:
        """Run the recurrence in the form that fits the length, carrying the state where there is one."""
        state, update = context.state, self.config.memory_update
        before = None if state is None else state[f"{self.layer_idx}.memory"]
        if q.shape[1] == 1:
            y, after = step_recurrence(q, k, v, beta, log_decay, context.positions, before, update)
        else:
            y, after = chunked_recurrence(
                q, k, v, beta, log_decay, context.positions, before, update, self.config.chunk_size
            )
        if state is not None:
            state[f"{self.layer_idx}.memory"] = after
        return y


class MMRecWindow(nn.Module):
    """The short-term memory: attention over the last W tokens, with rotary positions and normed queries and keys."""

    def __init__(self, config: MMRecConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = MMRecRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        v = self.v_proj(x).view(heads)
        q, k = self.q_norm(self.q_proj(x).view(heads)), self.k_norm(self.k_proj(x).view(heads))
        if self.config.window_rope:
            q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if context.state is None:
            y = window_attention(q, k, v, None, None, context.positions, self.config.window)
        elif x.shape[1] == 1 and not torch.is_grad_enabled():  # writes in place
            y = self._decode_step(q, k, v, context, context.state)
        else:
            y = self._prefill_chunk(q, k, v, context, context.state)
        out: Tensor = self.o_proj(y.flatten(2))
        return out

    def _decode_step(
        self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, state: MemoryState
    ) -> Tensor:
        """One new token a row: write it into its slot of the ring, then attend to the ring."""
        rows = torch.arange(q.shape[0], device=q.device)
        slot = context.positions[:, 0] % self.config.window
        for name, new in ((f"{self.layer_idx}.keys", k), (f"{self.layer_idx}.values", v)):
            ring, token = state[name], new[:, 0].to(state[name].dtype)
            if context.valid is not None:
                token = torch.where(context.valid[:, :, None], token, ring[rows, slot])
            ring[rows, slot] = token
        keys, values = state[f"{self.layer_idx}.keys"], state[f"{self.layer_idx}.values"]
        return ring_attention(q, keys.to(q.dtype), values.to(q.dtype), context.positions[:, 0] + 1)

    def _prefill_chunk(
        self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, state: MemoryState
    ) -> Tensor:
        """Several new tokens: attend to the ring in order of time and to each other, then write the last W."""
        window, lengths = self.config.window, state["lengths"]
        index = torch.arange(window, device=q.device)
        order = (lengths[:, None] + index) % window  # slots, oldest first
        past = []
        for name, new in ((f"{self.layer_idx}.keys", k), (f"{self.layer_idx}.values", v)):
            past.append(take_columns(state[name], order).to(new.dtype))
            timeline = torch.cat([past[-1], new], dim=1)
            last = last_columns(timeline, context.counts, window)
            final = final_lengths(context)
            # Slot s holds the newest position p < final with p ≡ s (mod W), which is final − 1 − p columns back.
            back = (final[:, None] - 1 - index) % window
            state[name] = take_columns(last, window - 1 - back).to(state[name].dtype)
        return window_attention(q, k, v, past[0], past[1], context.positions, window)


class MMRecLayer(GradientCheckpointingLayer):
    """Pre-norm residual block: a mixer, then SwiGLU."""

    def __init__(self, config: MMRecConfig, layer_idx: int) -> None:
        super().__init__()
        kind = config.layer_types[layer_idx]
        self.mixer = MMRecMemory(config, layer_idx) if kind == "memory" else MMRecWindow(config, layer_idx)
        self.mlp = MMRecMLP(config)
        self.mixer_norm = MMRecRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_norm = MMRecRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x = x + self.mixer(self.mixer_norm(x), context)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class MMRecPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the family: names, initialisation, abilities."""

    config: MMRecConfig
    config_class = MMRecConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MMRecLayer"]
    _supports_sdpa = True
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as docs/mmrec.md says: N(0, 0.02), outputs divided by √(2·layers), spread time-scales."""
        config, init = self.config, torch.nn.init
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, MMRecRMSNorm):
            init.ones_(module.weight)
        if isinstance(module, MMRecMemory):
            memories = (
                torch.linspace(0, 1, config.num_memories) if config.num_memories > 1 else torch.tensor([0.5])
            )
            shortest, longest = math.log(config.shortest_memory), math.log(config.longest_memory)
            module.decay_log_rate.copy_(-(shortest + memories * (longest - shortest)))  # exp(a) = 1 / τ
            init.constant_(module.decay_bias, math.log(math.e - 1))  # softplus⁻¹(1)
            if module.write_bias is not None:
                init.zeros_(module.write_bias)
            init.normal_(module.decay_proj.weight, std=config.initializer_range / 10)
            bound = 1 / math.sqrt(config.conv_taps)
            init.uniform_(module.conv_weight, -bound, bound)
        if isinstance(module, MMRecModel) and config.residual_lambdas:
            module.lambdas[0].fill_(1.0)
            module.lambdas[1].fill_(0.1)
        std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        if isinstance(module, MMRecMemory | MMRecWindow):
            init.normal_(module.o_proj.weight, std=std)
        if isinstance(module, MMRecMLP):
            init.normal_(module.down_proj.weight, std=std)


class MMRecModel(MMRecPreTrainedModel):
    """The backbone: embeddings, layers, final norm."""

    def __init__(self, config: MMRecConfig) -> None:
        super().__init__(config)
        self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MMRecLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MMRecRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        if config.residual_lambdas:
            self.lambdas = nn.Parameter(torch.empty(2, config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table (V, D)."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MemoryState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Read (B, T) tokens. attention_mask: (B, ≥ T), 0 for tokens that are not there, wherever they stand;
        document_ids: (B, T), a new document wherever the id changes; past_key_values: the state to continue, changed
        in place. Returns last_hidden_state (B, T, D) and, with use_cache, the state after the tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        state = past_key_values
        remember = self.config.use_cache and not self.training if use_cache is None else use_cache
        if state is None and remember:
            state = MemoryState(self.config, x.shape[0], x.dtype, x.device)
        order = None
        if attention_mask is not None:
            x, document_ids, valid, order = pad_right(x, document_ids, attention_mask[:, -x.shape[1] :] != 0)
        else:
            valid = None
        context = make_context(self.config, x, valid, document_ids, state)
        first = x
        for number, layer in enumerate(self.layers):
            if self.config.residual_lambdas:
                x = self.lambdas[0, number].to(x.dtype) * x + self.lambdas[1, number].to(x.dtype) * first
            x = layer(x, context)
        x = self.norm(x)
        if state is not None:
            update_state(state, context, document_ids)
        if order is not None:  # back to the columns that the caller knows
            x = torch.zeros_like(x).scatter(1, order[..., None].expand_as(x), x)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=state)


class MMRecForCausalLM(MMRecPreTrainedModel, GenerationMixin):
    """MM-Rec with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MMRecConfig) -> None:
        super().__init__(config)
        self.model = MMRecModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MemoryState | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the backbone, with logits (B, T, vocabulary) and, where labels (B, T, unshifted, −100 ignored) are
        given, their mean cross-entropy in nats a token.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = linear(hidden[:, kept], self.lm_head.weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
