"""Model configurations: tiny ones for tests and trials, published ones for planning without weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from fedquilt.core.errors import ModelError, suggestion

Values = dict[str, Any]
"""``model_type`` and the keyword arguments of the Hugging Face config class of that type."""

PUBLISHED: dict[str, Values] = {
    "vit-b16": {
        "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3,
    },
    "vit-l16": {
        "model_type": "vit", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "image_size": 224, "patch_size": 16, "num_channels": 3,
    },
    "bert-base": {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
    },
    "minilm-l6": {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    },
    "llama-3-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The values of published configs that determine shapes."""

_TINY_TYPES = {
    "vit": "vit", "bert": "bert", "distilbert": "distilbert", "llama": "llama", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "qwen": "qwen2", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2",
}  # fmt: skip
_TINY_SIZES = {"layers": 2, "width": 32, "heads": 2, "image": 28, "patch": 7, "channels": 1}
_MLP_SIZES = {"layers": 2, "width": 64}
_LARGEST = {"layers": 200, "width": 16384, "heads": 1024, "image": 4096, "patch": 4096, "channels": 64}


def published(name: str) -> Values:
    """The published configuration called ``name``.

    Raises
    ------
    ModelError
        if there is none; lists the known names.
    """
    if name not in PUBLISHED:
        raise ModelError(
            f"there is no shape '{name}'{suggestion(name, list(PUBLISHED))}; there are: {', '.join(PUBLISHED)}"
        )
    return dict(PUBLISHED[name])


def tiny(name: str, vocab_size: int, positions: int) -> Values:
    """A small configuration by an architecture and optional sizes, as in ``"vit?layers=12&width=64"``.

    The sizes and their defaults are ``layers`` (2), ``width`` (32) and ``heads`` (2), and for ViT ``image`` (28),
    ``patch`` (7) and ``channels`` (1). Dropout is off, so that runs can be compared.

    Raises
    ------
    ModelError
        if the architecture or a size is unknown, or the sizes are inconsistent.
    """
    kind, _, options = name.partition("?")
    if kind not in _TINY_TYPES:
        raise ModelError(
            f"there is no tiny architecture '{kind}'{suggestion(kind, list(_TINY_TYPES))}; "
            f"there are: {', '.join(_TINY_TYPES)}"
        )
    size = _sizes(f"tiny:{name}", options, _TINY_SIZES)
    layers, width, heads = size["layers"], size["width"], size["heads"]
    if width % (2 * heads):
        raise ModelError(f"tiny:{name}: width {width} must be a multiple of twice the heads ({heads})")
    if size["image"] % size["patch"]:
        raise ModelError(f"tiny:{name}: image {size['image']} must be a multiple of patch {size['patch']}")
    common = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * width,
    }
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    values: Values = {"model_type": _TINY_TYPES[kind]}
    if kind == "vit":
        pixels = {"image_size": size["image"], "patch_size": size["patch"], "num_channels": size["channels"]}
        return values | common | no_dropout | pixels
    values["vocab_size"] = vocab_size
    if kind == "bert":
        return values | common | no_dropout | {"max_position_embeddings": positions}
    if kind == "distilbert":
        dropout = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        shape = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * width}
        return values | dropout | shape | {"max_position_embeddings": positions}
    if kind == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return values | dropout | {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    head_dim = width // heads
    values |= {"num_key_value_heads": 1, "head_dim": head_dim, "max_position_embeddings": positions}
    if kind in ("gemma2", "gemma3"):
        values |= {"query_pre_attn_scalar": head_dim}
    return values | common


def mlp(name: str) -> Values:
    """The configuration of ``"mlp?layers=3&width=64"``; sizes that are left out are 2 layers and width 64.

    Raises
    ------
    ModelError
        if a size is unknown or not a whole number within its bounds.
    """
    size = _sizes(name, name.partition("?")[2], _MLP_SIZES)
    return {"model_type": "mlp", "num_hidden_layers": size["layers"], "hidden_size": size["width"]}


def _sizes(name: str, options: str, defaults: Mapping[str, int]) -> dict[str, int]:
    size = dict(defaults)
    for key, text in parse_qsl(options, keep_blank_values=True):
        if key not in size:
            raise ModelError(
                f"{name}: there is no size '{key}'{suggestion(key, list(size))}; there are: {', '.join(size)}"
            )
        if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _LARGEST[key]:
            raise ModelError(
                f"{name}: {key} is '{text}'; it must be a whole number of at least 1 and at most {_LARGEST[key]}"
            )
        size[key] = int(text)
    return size
