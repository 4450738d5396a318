"""A config of any architecture that transformers knows, made so small that a model of it is built in a moment.

Most of it is one list of rules: fields that mean the same have much the same names everywhere. What is left stands in
``EXCEPTIONS``, by model type.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import transformers

from fedquilt.models.text import NUM_TOKENS

WIDTH, HEADS, LAYERS, POSITIONS = 32, 4, 2, 160

RULES: tuple[tuple[str, Any], ...] = (
    (r"(vocab_size|\w+_vocab_size|num_embeddings|vocab_size_or_config_json_file)", NUM_TOKENS),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id|sep_token_id", 2),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions", POSITIONS),
    (r"max_source_positions|max_seq_length|context_length|seq_length", POSITIONS),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|word_embed_proj_dim|dim|n_embed|emb_dim|hidden_dim", WIDTH),
    (r"encoder_hidden_size|decoder_hidden_size|width|projection_dim|lm_head_hidden|text_hidden_size", WIDTH),
    (r"moe_intermediate_size|\w*expert_intermediate_size|\w*expert_ffn_hidden_size", WIDTH),
    (r"\w*intermediate_size\w*|\w*ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|feed_forward_dim|dim_ff", 2 * WIDTH),
    (r"(num_)?(encoder_|decoder_)?(hidden_)?layers|n_layers?|num_(encoder|decoder)_layers|depth", LAYERS),
    (r"(num_|encoder_|decoder_|num_(encoder_|decoder_))?attention_heads|n_heads?|num_heads", HEADS),
    (r"num_key_value_heads|num_kv_heads|num_query_groups|multi_query_group_num|n_kv_heads", HEADS // 2),
    (r"(global_)?head_dim|attention_head_size|d_kv|kv_channels|d_head|\w+_head_dim", WIDTH // HEADS),
    (r"qk_rope_head_dim|qk_nope_head_dim", WIDTH // HEADS),
    (r"\w*lora_rank", WIDTH // HEADS),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok\w*|moe_topk|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|n_shared_experts|num_shared_experts", 1),
    (r"sliding_window|attention_window|local_attention|window_size", 16),
    (r"adapter_in_dim|adapter_input_size|adapter_out_dim", WIDTH),
    (r"image_size", 32),
    (r"patch_size", 8),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", 8),
)

_SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_SHARED = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": NUM_TOKENS}
_ASSISTED = {"num_kv_shared_layers": LAYERS, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
_HYBRID = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_AXES = {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 20]}
_REFORMER = _AXES | {"attn_layers": ["local", "lsh"], "is_decoder": True}
_STAGES = {"hidden_sizes": [16, 32], "depths": [2, 2]}

KINDS = ("layer_types", "mlp_layer_types", "layers_block_type")
"""Fields that hold the kind of each layer."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bit": _STAGES | {"embedding_size": 16, "num_groups": 4, "out_features": None},
    "convnext": _STAGES | {"num_stages": 2, "patch_size": 4},
    "convnextv2": _STAGES | {"num_stages": 2, "patch_size": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba": _HYBRID,
    "zamba2": _HYBRID,
    "zaya": {"num_experts_per_tok": 1, "sliding_window": 16},
    "codegen": {"rotary_dim": 4},
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "donut-swin": _SWIN,
    "dots3_note": {"text_config": {"num_key_value_heads": HEADS}},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "esmc": {"num_key_value_heads": HEADS},
    "bamba": _MAMBA,
    "deepseek_v4": {"partial_rotary_factor": 0.5},
    "gemma3n_text": _SHARED,
    "gemma4_assistant": {"text_config": _ASSISTED},
    "gemma4_unified_assistant": {"text_config": _ASSISTED},
    "granitemoehybrid": _MAMBA,
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "reformer": _REFORMER,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "levit": {"patch_size": 16, "image_size": 64, "architectures": ["LevitForImageClassification"]},
    "perceiver": {"architectures": ["PerceiverForImageClassificationLearned"]},
    "pvt_v2": {"image_size": 128},
    "segformer": {"sr_ratios": [1, 1, 1, 1], "patch_size": ...},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "xmod": {"default_language": "en_XX"},
}


def tiny_config(model_type: str) -> Any:
    """The tiny config of this type."""
    kind = transformers.CONFIG_MAPPING[model_type]
    return kind(**_small(kind, EXCEPTIONS.get(model_type, {})))


def _kinds(kind: Any) -> dict[str, list[str]]:
    """What kinds of layers the default config of this class has: one of each, as far as there are layers."""
    try:
        whole = vars(kind())
    except ValueError:  # a few are not valid without values
        return {}
    found = {name: whole[name] for name in KINDS if isinstance(whole.get(name), list) and whole[name]}
    return {name: (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS] for name, kinds in found.items()}


def _small(kind: Any, exceptions: dict[str, Any]) -> dict[str, Any]:
    """Values for the fields of this class of configs that make it small."""
    values: dict[str, Any] = {}
    parts = kind.sub_configs_defaults
    kinds_of = _kinds(kind)
    for field in dataclasses.fields(kind):
        if field.name in kinds_of:
            values[field.name] = kinds_of[field.name]
            continue
        if field.name in parts:
            spec = parts[field.name]
            part = transformers.CONFIG_MAPPING[spec.model_type] if spec.model_type else spec.config_class
            if not spec.optional:
                values[field.name] = _small(part, {}) | {"model_type": part.model_type}
            continue
        default = field.default
        if isinstance(default, bool) or (not isinstance(default, int | type(None)) and not field.name.endswith("_id")):
            continue
        if default is None and "layers" in field.name:
            continue
        value = next((value for pattern, value in RULES if re.fullmatch(pattern, field.name)), None)
        if value is not None:
            values[field.name] = value
    if "kv_lora_rank" in values:  # keys and values are made of one low-rank part, for every head
        values["num_key_value_heads"] = HEADS
    for name, value in exceptions.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            value = {**values[name], **value}
        values[name] = value
    return {name: value for name, value in values.items() if value is not ...}
