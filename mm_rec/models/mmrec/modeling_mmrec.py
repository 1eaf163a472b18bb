"""MM-Rec, a causal language model with a state of constant size, as an ordinary transformers model.

Shapes: B sequences, T tokens, D hidden size.
The files of this folder import only torch, transformers and each other, and travel with the weights.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .attention import MMRecAttention
from .configuration_mmrec import ATTENTION, MMRecConfig, MMRecHybridConfig
from .forward_context import ForwardContext, make_context, pad_right, update_state
from .memory import MMRecMemory
from .norm import MMRecRMSNorm
from .state import LayerState, MemoryState


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


class MMRecLayer(GradientCheckpointingLayer):
    """Pre-norm residual block: a mixer, then SwiGLU."""

    def __init__(self, config: MMRecConfig, layer_idx: int) -> None:
        super().__init__()
        if config.layer_types[layer_idx] == ATTENTION:
            self.mixer: nn.Module = MMRecAttention(cast(MMRecHybridConfig, config))
        else:
            self.mixer = MMRecMemory(config, layer_idx)
        self.mlp = MMRecMLP(config)
        self.mixer_norm = MMRecRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_norm = MMRecRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, context: ForwardContext, before: LayerState | None
    ) -> tuple[Tensor, LayerState | None]:
        """(B, T, D) → (B, T, D), and the layer's state after the tokens where there is one before them."""
        mixed, after = self.mixer(self.mixer_norm(x), context, before)
        x = x + mixed
        x = x + self.mlp(self.mlp_norm(x))
        return x, after


def time_scales(config: MMRecConfig, layer: int) -> Tensor:
    """How many tokens each memory of a layer keeps what it read when training begins, (M,).

    The first has the shortest time-scale in every layer; the others' are spread evenly in logarithms up to the longest,
    over the memories and then over the layers.
    """
    count = config.num_memories
    place = (torch.arange(count) + (layer + 0.5) / config.num_hidden_layers) / count
    if count > 1:
        place[0] = 0
    return config.shortest_memory * (config.longest_memory / config.shortest_memory) ** place


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
        """Initialise as docs/mmrec.md says: N(0, initializer_range), outputs over √(2·layers), spread time-scales."""
        config, init = self.config, torch.nn.init
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, MMRecRMSNorm):
            init.ones_(module.weight)
        if isinstance(module, MMRecMemory):
            # softplus(b) = 1 / τ, exp(a) = 1: so one token can still make the slowest memory forget (Gu and Dao 2023).
            module.decay_bias.copy_((1 / time_scales(config, module.layer_idx)).expm1().log())
            init.zeros_(module.decay_log_rate)
            init.normal_(module.decay_proj.weight, std=config.initializer_range / 10)
            bound = 1 / math.sqrt(config.conv_taps)
            init.uniform_(module.conv_weight, -bound, bound)
        std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        if isinstance(module, MMRecMemory | MMRecAttention):
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
        for number, layer in enumerate(self.layers):
            # Its own tensors, by names that all layers share: a compiled layer is then the same for all of them.
            x, after = layer(x, context, None if state is None else state.of_layer(number))
            if state is not None:
                state.keep(number, after)
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


class MMRecHybridModel(MMRecModel):
    """The backbone of the hybrid: some of its layers attend to all tokens."""

    config: MMRecHybridConfig
    config_class = MMRecHybridConfig


class MMRecHybridForCausalLM(MMRecForCausalLM):
    """The hybrid with a language-model head."""

    config: MMRecHybridConfig
    config_class = MMRecHybridConfig
