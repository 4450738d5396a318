"""Frozen linear modules with weights in 8 or 4 bits; only this module imports bitsandbytes.

The linear modules of the blocks are quantised, as in QLoRA; embeddings, norms and the head are not. Weights alone are
quantised, not activations: a pass computes with the dequantised weight in the type of its input. The result is so the
same function in training and evaluation and on every device, and the gradient of the input is its own.

``int8`` has one scale for each output, the largest magnitude of its weights over 127. ``nf4`` is the 4-bit NormalFloat
of QLoRA in blocks of 64 with doubly quantised scales, bit-identical to that of bitsandbytes, which dequantises it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.module import is_linear, is_transposed, num_features
from fedquilt.core.autocast import autocast_dtype
from fedquilt.core.types import Blocks

_BLOCK, _OUTER = 64, 256
_AT_ONCE = 2**20  # weights, so that temporary tensors stay small
_INNER = 127


def missing_package(quantization: str) -> str:
    """The package that this quantisation needs and that is not installed; empty if there is none."""
    lacking = quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None
    return "bitsandbytes" if lacking else ""


def quantize(model: nn.Module, blocks: Blocks, quantization: str, dtype: torch.dtype) -> None:
    """Quantise the linear modules of the model's blocks in place; on the meta device only their shapes.

    Modules of classes that compute more than a linear map, such as some routers of experts, stay as they are.
    ``quantization`` is ``"int8"``, ``"nf4"`` or ``"none"``, which changes nothing. ``dtype`` is the type in which the
    modules give their weights. The other weights are copied, so that the file of a model that is mapped into memory is
    no longer used and its memory can be freed.
    """
    if quantization == "none":
        return
    for name, module in _plain_modules(model, blocks).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedLinear(module, quantization, dtype))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def dequantize(model: nn.Module, blocks: Blocks, quantization: str) -> None:
    """Give the modules that ``quantize`` would quantise the values that they then compute with, in place."""
    if quantization == "none":
        return
    for module in _plain_modules(model, blocks).values():
        weight = cast(nn.Parameter, module.weight)
        weight.data = QuantizedLinear(module, quantization, weight.dtype).weight.contiguous()


def _plain_modules(model: nn.Module, blocks: Blocks) -> dict[str, nn.Module]:
    """The linear modules of the blocks by path, those alone whose class computes no more than a linear map."""
    return {
        name: module
        for name, module in model.named_modules()
        if blocks.depth(name) is not None
        and (type(module).forward is nn.Linear.forward or (is_linear(module) and is_transposed(module)))
    }


class QuantizedLinear(nn.Module):
    """A frozen linear module with a quantised weight: ``y = W x + b``, computed in the type of x (or of autocast).

    Its parameters are the tensors of the quantised weight (``stored``) and the bias of ``base``. ``transposed`` says
    whether ``base`` keeps its weight as (d_in, d_out), as GPT-2's Conv1D does; ``weight`` then does too.
    """

    def __init__(self, base: nn.Module, quantization: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = num_features(base)
        self.transposed = is_transposed(base)
        self.quantization = quantization
        self.dtype = dtype
        weight = cast(Tensor, base.weight).detach()
        for name, tensor in _SCHEMES[quantization].quantized(weight.T if self.transposed else weight).items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = cast("nn.Parameter | None", getattr(base, "bias", None))
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, in the type of the model's other weights."""
        weight = self.dequantized(self.dtype)
        return weight.T if self.transposed else weight

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors of the quantised weight."""
        return {name: tensor for name, tensor in self._parameters.items() if tensor is not None and name != "bias"}

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (d_out, d_in) in this type."""
        return _SCHEMES[self.quantization].dequantized(self.stored, (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b``, (..., d_in) -> (..., d_out)."""
        x = x.to(autocast_dtype(x) or x.dtype)
        product: Callable[..., Tensor] = _Product.apply
        return product(x, self)


class _Product(torch.autograd.Function):
    """``W x + b``: unlike autograd's own product it keeps no dequantised weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: QuantizedLinear) -> Tensor:
        ctx.module = module
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return F.linear(x, module.dequantized(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.module.dequantized(grad.dtype), None


class _Int8:
    @staticmethod
    def quantized(weight: Tensor) -> dict[str, Tensor]:
        scale = weight.abs().amax(1).float() / _INNER  # (d_out,)
        steps = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        return {"codes": (weight / steps).round().to(torch.int8), "scale": scale}

    @staticmethod
    def dequantized(tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return tensors["codes"].to(dtype).mul_(tensors["scale"].to(dtype).unsqueeze(1))


class _Nf4:
    @staticmethod
    def quantized(weight: Tensor) -> dict[str, Tensor]:
        num = weight.numel()
        num_blocks = -(num // -_BLOCK)
        if weight.is_meta:
            sizes = {"codes": (-(num // -2), 1), "scale": (num_blocks,)}
            made = {name: torch.empty(size, dtype=torch.uint8, device="meta") for name, size in sizes.items()}
            outer = torch.empty(-(num_blocks // -_OUTER), device="meta")
            return {**made, "outer_scale": outer, "offset": torch.empty((), device="meta")}
        flat = F.pad(weight.reshape(-1), (0, num_blocks * _BLOCK - num))
        parts = [_nearest(part.float().view(-1, _BLOCK)) for part in flat.split(_AT_ONCE)]
        codes = torch.cat([code for code, _ in parts])[: -(num // -2)].unsqueeze(1)
        scales = torch.cat([scale for _, scale in parts])
        offset = scales.mean()
        inner, outer_state = _bitsandbytes().quantize_blockwise(scales - offset, blocksize=_OUTER)
        return {"codes": codes, "scale": inner, "outer_scale": outer_state.absmax, "offset": offset}

    @staticmethod
    def dequantized(tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        codes = tensors["codes"]
        if codes.is_meta:
            return torch.empty(shape, dtype=dtype, device="meta")
        library = _bitsandbytes()
        inner, outer = _tables(codes.device)
        outer_state = library.QuantState(tensors["outer_scale"], code=outer, blocksize=_OUTER, dtype=torch.float32)
        state = library.QuantState(
            tensors["scale"],
            shape=torch.Size(shape),
            code=inner,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=tensors["offset"],
            state2=outer_state,
        )
        return cast(Tensor, library.dequantize_4bit(codes, state))


_SCHEMES: Mapping[str, type[_Int8] | type[_Nf4]] = {"int8": _Int8, "nf4": _Nf4}


def _nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest values of each block, two in a byte, and the largest magnitude of each block."""
    scale = rows.abs().amax(1)
    shares = rows / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    values = _tables(rows.device)[0]
    nearest = torch.zeros(shares.shape, dtype=torch.uint8, device=rows.device)
    for middle in ((values[1:].double() + values[:-1].double()) / 2).float().tolist():
        nearest += shares > middle
    pairs = nearest.view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1], scale


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 16 values of NormalFloat, and the 256 values of the scales' own quantisation."""
    library = _bitsandbytes()
    return library.get_4bit_type("nf4", device=device), library.create_dynamic_map().to(device)


@cache
def _bitsandbytes() -> Any:
    """bitsandbytes.functional, imported without its remarks on kernels that it could use in addition."""
    log = logging.getLogger("bitsandbytes")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    finally:
        log.setLevel(before)
    return bitsandbytes.functional
