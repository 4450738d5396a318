"""The number type of a frozen base, and a head that is float32 behind it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.models.quantization import QuantizedLinear

_SHORT = (torch.bfloat16, torch.float16)


def base_dtype(dtype: torch.dtype | None, config: Any) -> torch.dtype:
    """``dtype``; for None the type that suits the stored weights: bfloat16 if they have 16 bits, else float32.

    ``config`` is the model's config, in which transformers keeps the type of the stored weights.
    """
    if dtype is not None:
        return dtype
    stored = {getattr(part, "dtype", None) for part in (config, config.get_text_config())}
    return torch.bfloat16 if stored & {*_SHORT} else torch.float32


def set_dtype(model: nn.Module, head: Collection[str], dtype: torch.dtype) -> None:
    """Convert the base of ``model`` to ``dtype`` in place, and the parameters of its ``head`` to float32.

    Buffers that are part of the saved model are converted with the base; others, such as the frequencies of rotary
    positions, keep their type, as in transformers. The modules of a float32 head behind a base of another type convert
    their inputs to float32, as PEFT's adapters do; with ``dtype`` float32 the modules stay as they are. Quantised
    weights stay as they are.
    """
    for path, module in model.named_modules():
        stored = module.stored if isinstance(module, QuantizedLinear) else ()
        names = [f"{path}.{name}" if path else name for name in module._parameters]
        own = [parameter for name, parameter in zip(names, module._parameters.values(), strict=True) if name in head]
        for name, parameter in zip(names, module._parameters.values(), strict=True):
            if parameter is not None and parameter.is_floating_point() and name.rpartition(".")[2] not in stored:
                parameter.data = parameter.data.to(torch.float32 if name in head else dtype)
        if own and dtype != torch.float32:
            module.register_forward_pre_hook(_widened, with_kwargs=True)
        for name, buffer in module._buffers.items():
            saved = name not in module._non_persistent_buffers_set
            if buffer is not None and saved and buffer.is_floating_point():
                module._buffers[name] = buffer.to(torch.float32 if own else dtype)


def _widened(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
