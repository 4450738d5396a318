"""Tensors that travel beside those of a method, in messages of their own names: ``<prefix>.<name>``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedquilt.core.method import Exchange
from fedquilt.core.types import Order, Reply


def is_beside(name: str, prefix: str) -> bool:
    """Whether a tensor is one of those beside the method's."""
    return name.startswith(f"{prefix}.")


def bare(order: Order, prefix: str) -> Order:
    """The order without the tensors beside the method's."""
    return replace(order, params={name: own for name, own in order.params.items() if not is_beside(name, prefix)})


def bare_reply(reply: Reply, prefix: str) -> Reply:
    """The reply without the tensors beside the method's."""
    return replace(reply, params={name: own for name, own in reply.params.items() if not is_beside(name, prefix)})


def reading_bare(exchange: Exchange, prefix: str) -> Exchange:
    """The exchange whose ``expects``, ``metrics``, ``ranges`` and ``peers`` see orders without these tensors."""
    fields: dict[str, Any] = {}
    for name in ("expects", "metrics", "ranges", "peers"):
        if (inner := getattr(exchange, name)) is not None:
            fields[name] = lambda order, inner=inner: inner(bare(order, prefix))
    return exchange._replace(**fields)
