"""Bytes that a training step holds besides weights and gradients, followed on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fedquilt.client.client import Client
from fedquilt.client.workbench import Workbench


def activation_bytes(
    client: Client, names: Collection[str], max_length: int, blocks: Collection[int] | None = None
) -> int:
    """The most bytes that a forward and backward pass holds at a time, less the gradients of the tensors ``names``.

    Every tensor counts from the operation that makes it until it is freed: what autograd keeps, logits and loss with
    their gradients, dequantised weights, and with gradient checkpointing the blocks' inputs and the activations of the
    block that is computed again. The model's weights do not count. ``blocks`` are the transformer blocks that are run,
    None for all.
    """
    bench = client.bench
    inputs = _inputs(bench.model, client.training.batch_size, max_length)
    live = _Live(chain(bench.model.parameters(), bench.model.buffers(), inputs.values()))
    with ExitStack() as stack:
        trained = stack.enter_context(bench.training(names, recompute=client.training.gradient_checkpointing))
        stack.enter_context(bench.shallow(blocks))
        if client.training.accumulation > 1:  # all but the first pass of a step begin with gradients
            for tensor in trained:
                tensor.grad = torch.empty_like(tensor)
                live.count(tensor.grad)
        stack.enter_context(live)
        _pass(client, inputs)
    return max(0, live.most - sum(tensor.numel() * tensor.element_size() for tensor in trained))


def _pass(client: Client, inputs: dict[str, Tensor]) -> None:
    """One forward and backward pass, which frees its tensors where those of ``client.fit`` do."""
    loss = _loss(client.bench, inputs)
    if loss.requires_grad:  # nothing may be trained
        loss.backward()


def _loss(bench: Workbench, inputs: dict[str, Tensor]) -> Tensor:
    bench.during = partial(_AsOnADevice, bench.precision == "bf16")  # also when a block is computed again
    with bench.autocast(), bench.during():
        logits = bench.model(**inputs).logits
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
    return bench.scoring.loss(logits, labels).sum()


class _Live(TorchDispatchMode):
    """Follow the bytes of all tensors that operations make inside; ``most`` is their largest number at a time."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        key = func, _key(args), _key(kwargs or {})
        if (form := _FORMS.get(key)) is not None:
            made = _blank(form)
        else:
            made = func(*args, **(kwargs or {}))
            if key not in _FORMS:
                _FORMS[key] = _form(made) if _is_new(made, (args, kwargs)) else None
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return made

    def count(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is freed; views of one storage count once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            finalize(storage, self._freed, storage._cdata)

    def _freed(self, storage: int) -> None:
        self._now -= self._sizes.pop(storage)


class _Form(NamedTuple):
    """All that there is to a tensor on the meta device, besides its storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_FORMS: dict[Any, Any] = {}
"""The forms of what operations make, by the operation and the forms of what it is given; None of views and the like.

Most operations on the meta device are written in Python, and blocks and clients repeat them: this is several times as
fast.
"""


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Form(value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(one)) for name, one in value.items())
    return type(value), value  # as 1 is not 1.0 or True


def _is_new(made: Any, given: Any) -> bool:
    """Whether an operation made nothing but tensors on the meta device, each with a storage of its own."""
    leaves = [one for one in ([made] if isinstance(made, Tensor) else tree_leaves(made)) if one is not None]
    if not leaves or not all(isinstance(one, Tensor) and one.is_meta for one in leaves):
        return False
    before = {one.untyped_storage()._cdata for one in tree_leaves(given) if isinstance(one, Tensor)}
    after = {one.untyped_storage()._cdata for one in leaves}
    return len(after) == len(leaves) and not before & after


def _form(made: Any) -> Any:
    return tree_map(lambda one: None if one is None else _key(one), made)


def _blank(form: Any) -> Any:
    if isinstance(form, _Form):
        return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=form.device)
    return None if form is None else type(form)(map(_blank, form))


def _inputs(model: Any, rows: int, max_length: int) -> dict[str, Tensor]:
    """A batch with the shapes of the model's inputs, on its device."""
    config, device = model.config, next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or 224  # a convolutional network takes any size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(rows, getattr(config, "num_channels", 3), height, width, device=device)}
    if model.main_input_name == "features":
        return {"features": torch.zeros(rows, config.num_features, device=device)}
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
