"""Bytes of activations that training keeps between the forward and the backward pass, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedquilt.client.client import Client


def activation_bytes(
    client: Client, names: Collection[str], max_length: int, blocks: Collection[int] | None = None
) -> int:
    """Most bytes that autograd keeps at a time between the start of the forward and the end of the backward pass.

    Storage that several operations keep is counted once; the model's weights are not counted. ``blocks`` are the
    transformer blocks that are run, None for all. That is what is kept when the forward pass ends; with gradient
    checkpointing it may be the input of every block and what one block keeps that is computed again.
    """
    kept = partial(_kept_bytes, client, names, max_length, blocks)
    if not client.training.gradient_checkpointing:
        return kept(recompute=False).whole
    inputs, plain = kept(recompute=True), kept(recompute=False)
    return max(inputs.whole, inputs.to_last_block + plain.largest_block)


class _Kept(NamedTuple):
    """Bytes that autograd keeps after a forward pass, after the last block of it, and the most of one block's own."""

    whole: int
    to_last_block: int
    largest_block: int


@dataclass(eq=False)
class _Saved:
    """A tensor that autograd keeps."""

    tensor: Tensor


def _kept_bytes(
    client: Client, names: Collection[str], max_length: int, blocks: Collection[int] | None, *, recompute: bool
) -> _Kept:
    bench = client.bench
    weights = {parameter.untyped_storage()._cdata for parameter in bench.model.parameters()}
    saved: WeakSet[_Saved] = WeakSet()  # what autograd lets go of is gone from it
    marks: list[int] = []

    def pack(tensor: Tensor) -> _Saved:
        held = _Saved(tensor)
        saved.add(held)
        return held

    def kept() -> int:
        storages = {held.tensor.untyped_storage()._cdata: held.tensor.untyped_storage().nbytes() for held in saved}
        return sum(size for storage, size in storages.items() if storage not in weights)

    def mark(*_: object) -> None:
        marks.append(kept())

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor)
    with ExitStack() as stack:
        stack.enter_context(bench.training(names, recompute=recompute))
        stack.enter_context(bench.shallow(blocks))
        for block in bench.model.get_submodule(bench.blocks.path).children():
            stack.callback(block.register_forward_pre_hook(mark).remove)
            stack.callback(block.register_forward_hook(mark).remove)
        stack.enter_context(hooks)
        stack.enter_context(_AsOnADevice(bench.precision == "bf16"))
        output = bench.model(**_inputs(bench.model, client.training.batch_size, max_length))
        ends = output.logits.float().logsumexp(-1) if output.logits.requires_grad else output
        whole = kept()
        del ends
    own = [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)]
    return _Kept(whole, marks[-1], max(own))


def _inputs(model: Any, rows: int, max_length: int) -> dict[str, Tensor]:
    """A batch with the shapes of the model's inputs, on its device."""
    config, device = model.config, next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or 224  # a convolutional network takes any size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(rows, getattr(config, "num_channels", 3), height, width, device=device)}
    tokens = min(max_length, getattr(config, "max_position_embeddings", None) or max_length)
    # transformers uses a mask of four dimensions as it is, and would need the values of one of two
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool, device=device)
    return {"input_ids": torch.zeros(rows, tokens, dtype=torch.long, device=device), "attention_mask": mask}


class _AsOnADevice(TorchFunctionMode):
    """Make operations on meta tensors keep the same activations as on a real device.

    Attention is fused, so that no attention weights are kept. Under bf16 autocast, which the meta device does not have,
    matrix products are in bf16.
    """

    _PRODUCTS: tuple[Any, ...] = (functional.linear, functional.conv2d, functional.scaled_dot_product_attention)
    _PRODUCTS += (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.addmm)

    def __init__(self, lowered: bool) -> None:
        super().__init__()
        self.lowered = lowered

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if self.lowered and func in self._PRODUCTS:
            args = tuple(_lowered(value) for value in args)
            named = {key: _lowered(value) for key, value in named.items()}
        if func is functional.scaled_dot_product_attention:
            return _fused_attention(*args, **named)
        return func(*args, **named)


def _lowered(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output
