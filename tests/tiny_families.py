"""Tiny models with random weights of every causal text family that transformers has, from its configuration alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, WINDOW = 300, 32
LARGEST = 20_000_000  # parameters

# What sizes are called, whatever the family: those that a configuration has are given to it.
_NAMES: dict[int, str] = {
    64: "hidden_size n_embd d_model dim embed_dim word_embed_proj_dim embedding_size lru_width attention_hidden_size "
    "emb_dim shared_intermediate_size index_topk",
    4: "num_hidden_layers n_layer num_layers n_layers decoder_layers num_decoder_layers num_attention_heads n_head "
    "num_heads n_heads decoder_attention_heads encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts linear_num_value_heads",
    2: "num_key_value_heads multi_query_group_num num_experts_per_tok moe_topk moe_k linear_num_key_heads eos_token_id "
    "index_n_heads",
    1: "n_group topk_group n_shared_experts mamba_n_groups n_groups moe_layer_freq first_k_dense_replace bos_token_id",
    0: "num_nextn_predict_layers pad_token_id",
    8: "rotary_dim mamba_n_heads mamba_num_heads hidden_size_per_layer_input",
    16: "head_dim global_head_dim swa_head_dim kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim mamba_d_head "
    "mamba_d_state mamba_head_dim ssm_state_size state_size linear_key_head_dim linear_value_head_dim index_head_dim",
    WINDOW: "sliding_window attention_window_size window_size attention_chunk_size local_attention_window "
    "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size q_lora_rank qk_head_dim",
    128: "intermediate_size ffn_dim decoder_ffn_dim n_inner ffn_hidden_size inner_hidden_size block_ff_dim mamba_d_ssm",
    512: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
_HYBRID = ["mamba", "attention"] * 2
_ZAMBA = {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": 4},
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "final_logit_softcapping": 5.0},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [128] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 48], "attention_head_size": 16,
        "feed_forward_size": 128, "attn_layers": ["local"],
    },
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": True},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_ZAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 2},
    "zamba2": {**_ZAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# What is not walked through: what needs more than text (images, sound, other models' states), and what transformers
# itself cannot build from a configuration of such fields.
MORE_THAN_TEXT = (
    "blt dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified gemma4_unified_assistant git "
    "got_ocr2 llama4 mllama moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe "
    "qwen4_exp"
)
NOT_BUILT = "cohere_compass_text dbrx dots3_note_text qwen4_exp_text"
FAMILIES = sorted(
    {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*MORE_THAN_TEXT.split(), *NOT_BUILT.split(), "mmrec"}
)


def tiny_config(family: str) -> PreTrainedConfig:
    """A configuration of a family with everything small."""
    config = CONFIG_MAPPING[family]
    fields = {*inspect.signature(config.__init__).parameters, *getattr(config, "__dataclass_fields__", {})}
    given: dict[str, Any] = {name: size for name, size in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:
        given["num_key_value_heads"] = given["num_attention_heads"]
    made: PreTrainedConfig = config(**{**given, **SPECIAL.get(family, {})})
    return made


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of a family whose predictions differ clearly from each other; raises ValueError for one that is large."""
    config = tiny_config(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{family} has {size:,} parameters")
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5 if weight.shape[-1] > 1 else 0.3)
    model.tie_weights()
    return model
