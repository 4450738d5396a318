"""Number types, quantisation and attention of the frozen bases of a config, and what they can be combined with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import torch

from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.shell import install_extra
from fedquilt.models.hf_files import FLASH
from fedquilt.models.quantization import missing_package


def base_dtype(config: Config) -> torch.dtype | None:
    """The type of the base's weights; None for bfloat16 if they are stored in 16 bits, and else float32."""
    if config.model.dtype == "auto":
        short = has_bfloat16(config.device) and not KINDS[config.adapter.kind].trains_base
        return None if short else torch.float32
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    return dtype


def has_bfloat16(device: str) -> bool:
    """Whether a config's ``device`` is a CUDA GPU with bfloat16 hardware; a GPU that is not here counts as one."""
    if device.partition(":")[0] not in ("auto", "cuda"):
        return False
    if not torch.cuda.is_available():
        return device != "auto"
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def other_weights(configs: Sequence[Config], began: str) -> str:
    """The message that a run's bases are not those with which it ``began``, on the device of this name."""
    names = "', '".join(dict.fromkeys(config.model.name for config in configs))
    text = f"model.name = '{names}' does not have the weights that the run began with"
    here = configs[0].device
    if any(config.model.dtype == "auto" for config in configs) and has_bfloat16(here) != has_bfloat16(began):
        text += f" (their type follows the device, with model.dtype = 'auto': '{began}' then, '{here}' here)"
    return text


def odd_bases(parts: Sequence[Part]) -> list[str]:
    """Problems of bases: what does not suit what is trained, and what is not installed; each names the key."""
    problems = []
    for part in parts:
        where = f"{part.key}.model" if "model" in part.own else "model"
        problems += [f"{where}.{problem}" for problem in (*_odd_weights(part.config), *_odd_attention(part.config))]
    return list(dict.fromkeys(problems))


def _odd_weights(config: Config) -> Iterator[str]:
    model, kind = config.model, config.adapter.kind
    trains_base = KINDS[kind].trains_base
    if model.dtype not in ("auto", "float32") and trains_base:
        yield (
            f"dtype = '{model.dtype}': adapter.kind = '{kind}' trains the base's own weights, and 16 bits would round "
            "its small steps away; set it to 'float32' (training.precision = 'bf16' makes the passes faster)"
        )
    elif model.dtype == "float16":
        yield (
            "dtype = 'float16': small gradients would vanish in it without loss scaling, which fedquilt does not do; "
            "set it to 'bfloat16' or 'float32'"
        )
    if model.quantization != "none" and trains_base:
        yield (
            f"quantization = '{model.quantization}': adapter.kind = '{kind}' trains the base's own weights, which "
            "cannot be done in so few bits; set it to 'none', or train adapters"
        )
    elif lacks := missing_package(model.quantization):
        yield (
            f"quantization = '{model.quantization}': needs {lacks}, which is not installed; set it to 'int8', which "
            f"needs no other package, or install it with: {install_extra('quantization')}"
        )


def _odd_attention(config: Config) -> Iterator[str]:
    model = config.model
    if model.attention != FLASH:
        return
    if not _on_gpu(config.device):
        yield f"attention = '{FLASH}': runs on CUDA GPUs only, and device = '{config.device}'; set it to 'sdpa'"
    elif importlib.util.find_spec("flash_attn") is None:
        yield f"attention = '{FLASH}': needs the package flash-attn, which is not installed; set it to 'sdpa'"
    elif model.dtype == "float32" and config.training.precision == "fp32":
        yield f"attention = '{FLASH}': computes in 16 bits only, and dtype = 'float32'; set dtype to 'bfloat16'"
    if config.training.packing:
        yield (
            f"attention = '{FLASH}': would mix the examples of training.packing = true, which it keeps apart only in a "
            "batch of a single row; set it to 'sdpa'"
        )


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
