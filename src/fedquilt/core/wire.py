"""Compressed messages: ``bfloat16``, or ``int8`` with one scale per tensor, with error feedback.

With Q the rounding, theta the server's tensor and e the client's residual (0 at first):

    down    the client trains from ``d = Q(theta)`` and ends at ``theta'``
    up      it sends ``q = Q(theta' - d + e)`` and keeps ``e <- theta' - d + e - q`` in its memory
    server  reads the reply as ``theta + q``, with its own unrounded theta

The sum of the updates that arrive is therefore the sum of the updates that were made, less the last ``e``, and a client
that changes nothing sends 0. There is no error feedback for orders: it would require a residual of every client on the
server. Rounding is to the nearest, not stochastic.

A tensor that was not part of the order (under its name and in its shape) is rounded itself, without error feedback. A
tensor without floating-point numbers, or one named in ``exact``, is not rounded. Tensors travel under their name and
dtype (``head.weight:float32``), so that the other side can restore the dtype; a scale is named ``head.weight:scale``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.errors import WireError
from fedquilt.core.method import Exchange, Method, Wire
from fedquilt.core.params import moved, num_bytes, wide
from fedquilt.core.types import ClientId, Order, Params, Reply

WIRE = "wire"
"""Key of the error-feedback residuals, by exchange, in a client's memory; hidden from ``work``."""

_SHORT = {"bfloat16": torch.bfloat16, "int8": torch.int8}
_ROUNDED = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_SCALE = "scale"


def with_wire_dtype(method: Method, dtype: str, *, feedback: bool = True, exact: Collection[str] = ()) -> Method:
    """The method whose tensors travel as ``dtype``, ``"bfloat16"`` or ``"int8"``, in all exchanges and both directions.

    Its ``ask``, ``work`` and ``merge`` still see full tensors, so that this is the outermost of all wrappers. Without
    ``feedback`` the rounding errors of a client's updates are lost. Tensors named in ``exact`` are not rounded, such as
    running variances: they are few, and the smallest of them would become 0 or less.

    Raises
    ------
    ValueError
        if there is no such dtype.
    """
    if dtype not in _SHORT:
        raise ValueError(f"tensors cannot travel as '{dtype}'; allowed: {', '.join(_SHORT)}")
    wire = Wire(dtype, feedback, frozenset(exact))

    def short(exchanges: tuple[Exchange, ...]) -> tuple[Exchange, ...]:
        return tuple(exchange._replace(wire=wire) for exchange in exchanges)

    return method._replace(exchanges=short(method.exchanges), closing=short(method.closing))


# One tensor ------------------------------------------------------------


def shortened(tensor: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """The tensor rounded to ``dtype``, and its scale if that is int8.

    For int8 this is ``round(x / s)`` with one float32 scale ``s = max |x| / 127``, and the error is at most ``s / 2``.
    For bfloat16 it is the nearest number, and the error is at most ``2^-8 |x|``. 0 stays 0.
    """
    if tensor.is_meta:  # only the form is wanted, and arithmetic on meta tensors is slow
        scale = torch.empty((), dtype=torch.float32, device="meta") if dtype == "int8" else None
        return torch.empty_like(tensor, dtype=_SHORT[dtype], requires_grad=False), scale
    exact = wide(tensor.detach())
    if dtype == "bfloat16":
        return exact.to(torch.bfloat16), None
    largest = exact.abs().amax() if exact.numel() else exact.new_zeros(())
    # no smaller than the smallest normal number: below it a quotient would no longer fit into int8
    scale = (largest / 127).to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return (exact / scale).round().clamp(-127, 127).to(torch.int8), scale


def lengthened(short: Tensor, scale: Tensor | None) -> Tensor:
    """The numbers that a result of ``shortened`` stands for, in the widest type of the device."""
    return wide(short) if scale is None else wide(short) * scale


# Down ------------------------------------------------------------


def lowered(orders: Mapping[ClientId, Order], wire: Wire) -> dict[ClientId, Order]:
    """The orders in the form in which they travel."""
    made: dict[tuple[str, int], Params] = {}  # most clients are sent the same tensors, which are rounded only once

    def form(name: str, tensor: Tensor) -> Params:
        key = name, id(tensor)
        if key not in made:
            made[key] = _form(name, tensor, tensor, wire)
        return made[key]

    return {
        client: replace(order, params=_joined(form(name, tensor) for name, tensor in order.params.items()))
        for client, order in orders.items()
    }


def raised(order: Order, wire: Wire) -> Order:
    """An order that travelled, as the client's work receives it: tensors in their own dtype, with rounded values.

    Raises
    ------
    WireError
        if its tensors do not have the form of this wire.
    """
    return replace(order, params={entry.name: entry.value.to(entry.dtype) for entry in _entries(order.params, wire)})


# Up ------------------------------------------------------------


def packed(order: Order, reply: Reply, owed: Mapping[str, Tensor], wire: Wire) -> tuple[Reply, Params]:
    """A reply in the form in which it travels, and the new residuals.

    ``order`` is as the client's work received it, ``owed`` holds the residuals of the previous replies.

    Paper: error-feedback, residual
    """
    forms: list[Params] = []
    owed = owed if wire.feedback else {}
    owing = dict(owed)
    for name, tensor in reply.params.items():
        base = _base(order, name, tensor, wire)
        if base is None:
            forms.append(_form(name, tensor, tensor, wire))
            continue
        update = wide(tensor.detach()) - wide(base.detach().to(tensor.device))
        if name in owed and owed[name].shape == update.shape:
            update = update + wide(owed[name].to(tensor.device))
        form = _form(name, tensor, update, wire)
        if wire.feedback:
            ((_, sent, _),) = _entries(form, wire)
            owing[name] = (update - sent).to(torch.promote_types(tensor.dtype, torch.float32))
        forms.append(form)
    return replace(reply, params=_joined(forms)), owing


def unpacked(order: Order, reply: Reply, wire: Wire) -> Reply:
    """A reply that travelled, as ``merge`` receives it; ``order`` is as the server made it, before any rounding.

    Raises
    ------
    WireError
        if its tensors do not have the form of this wire.
    """
    params: Params = {}
    for name, value, dtype in _entries(reply.params, wire):
        base = _base(order, name, value, wire)
        if base is None:
            params[name] = value.to(dtype)
            continue
        params[name] = moved(base.to(value.device), value, dtype)
    return replace(reply, params=params)


# Sizes and form ------------------------------------------------------------


def travelling(params: Mapping[str, Tensor], wire: Wire | None) -> Params:
    """The tensors that would travel for ``params``, on the meta device: names, dtypes and shapes without values."""
    bare = {name: tensor.detach().to("meta") for name, tensor in params.items()}
    return bare if wire is None else _joined(_form(name, tensor, tensor, wire) for name, tensor in bare.items())


def num_wire_bytes(params: Mapping[str, Tensor], wire: Wire | None) -> int:
    """Bytes of the raw tensors as they travel; with ``wire`` None they are not rounded."""
    return num_bytes(travelling(params, wire))


class _Entry(NamedTuple):
    """One tensor that travelled: its name, its numbers, and its original dtype."""

    name: str
    value: Tensor
    dtype: torch.dtype


def _form(name: str, tensor: Tensor, numbers: Tensor, wire: Wire) -> Params:
    """The tensors in which ``numbers`` (the tensor, or its update) travel under the tensor's name and dtype."""
    label = f"{name}:{str(tensor.dtype).removeprefix('torch.')}"
    if name in wire.exact or not _is_rounded(tensor):
        return {label: numbers}
    short, scale = shortened(numbers, wire.dtype)
    return {label: short} if scale is None else {label: short, f"{name}:{_SCALE}": scale}


def _entries(params: Mapping[str, Tensor], wire: Wire) -> Iterator[_Entry]:
    """Yield the tensors of an untrusted message one by one."""
    seen: set[str] = set()
    for label, tensor in params.items():
        name, _, tag = label.rpartition(":")
        if tag == _SCALE:
            continue
        dtype = None if name in wire.exact else _ROUNDED.get(f"torch.{tag}")
        scale = params.get(f"{name}:{_SCALE}")
        if name in seen:
            raise WireError(f"tensor {name[:80]!r} came twice")
        seen.add(name)
        if dtype is None:
            if f"torch.{tag}" != str(tensor.dtype) or scale is not None:
                raise WireError(f"tensor {label[:80]!r} is {tensor.dtype}, which is not what its name says")
            yield _Entry(name, tensor, tensor.dtype)
            continue
        if tensor.dtype != _SHORT[wire.dtype]:
            came = f"tensor {label[:80]!r} travelled as {tensor.dtype}, not {wire.dtype}"
            raise WireError(f"{came}; both sides need one network.dtype")
        if wire.dtype != "int8" and scale is not None:
            raise WireError(f"tensor {label[:80]!r} came with a scale, and {wire.dtype} has none")
        if wire.dtype == "int8" and (scale is None or scale.shape or scale.dtype != torch.float32):
            raise WireError(f"tensor {label[:80]!r} came without a scale of one float32")
        yield _Entry(name, lengthened(tensor, scale), dtype)
    for label in params:
        name, _, tag = label.rpartition(":")
        if tag == _SCALE and name not in seen:
            raise WireError(f"{label[:80]!r} came without its tensor")


def _base(order: Order, name: str, tensor: Tensor, wire: Wire) -> Tensor | None:
    """The order's tensor from which the update of ``tensor`` is computed, or None."""
    base = None if name in wire.exact else order.params.get(name)
    fits = base is not None and base.shape == tensor.shape and _is_rounded(base) and _is_rounded(tensor)
    return base if fits else None


def _is_rounded(tensor: Tensor) -> bool:
    return str(tensor.dtype) in _ROUNDED


def _joined(forms: Iterator[Params] | list[Params]) -> Params:
    return {label: tensor for form in forms for label, tensor in form.items()}
