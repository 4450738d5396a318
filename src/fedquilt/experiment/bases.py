"""Number types of the frozen bases of a config, and what they can be combined with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config


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


def odd_bases(parts: Sequence[Part]) -> list[str]:
    """Problems with bases whose number type does not suit what is trained; each names the key."""
    problems = []
    for part in parts:
        model, kind = part.config.model, part.config.adapter.kind
        key = f"groups[{part.place}].model.dtype" if "model" in part.own else "model.dtype"
        if model.dtype not in ("auto", "float32") and KINDS[kind].trains_base:
            problems.append(
                f"{key} = '{model.dtype}': adapter.kind = '{kind}' trains the base's own weights, and 16 bits would "
                "round its small steps away; set model.dtype = 'float32' (training.precision = 'bf16' makes the "
                "passes faster)"
            )
        elif model.dtype == "float16":
            problems.append(
                f"{key} = 'float16': small gradients would vanish in it without loss scaling, which fedquilt does not "
                "do; set model.dtype = 'bfloat16' or 'float32'"
            )
    return list(dict.fromkeys(problems))
