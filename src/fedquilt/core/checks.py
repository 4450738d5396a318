"""What a reply is held to before it reaches ``merge``, whoever sent it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedquilt.core.loop import Check, refusal
from fedquilt.core.method import Exchange
from fedquilt.core.params import select, squared_norm, sub
from fedquilt.core.types import Order, Profile, Reply
from fedquilt.core.wire import num_wire_bytes

MAX_METRICS, MAX_METRIC_NAME = 1000, 100
"""Numbers that a reply may hold besides its tensors (one score a layer fits in), and characters of their names."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one reply; None is no bound.

    ``max_update_norm`` bounds ``||theta - what was sent||`` over all tensors of the reply that the order held too,
    ``max_reply_bytes`` the raw bytes of its tensors as they travelled.
    """

    max_update_norm: float | None = None
    max_reply_bytes: int | None = None


def reply_check(profiles: Iterable[Profile], limits: Limits = Limits()) -> Check:
    """``check(exchange, order, reply)``: why a reply must be dropped, or None; what costs least is looked at first.

    It must answer this round's order, weigh no more than the examples its client announced, hold few and finite
    metrics, stay within ``limits``, hold exactly the tensors that the exchange expects, in shape and dtype as they were
    sent (where the exchange says what it expects), and be finite. A reply can only be dropped, never repaired.
    """
    examples = {profile.id: profile.num_examples for profile in profiles}

    def check(exchange: Exchange, order: Order, reply: Reply) -> str | None:
        return (
            _stale(order, reply)
            or _odd_numbers(reply, examples.get(reply.client))
            or _too_large(exchange, reply, limits.max_reply_bytes)
            or _unlike(exchange, order, reply)
            or refusal(reply)
            or _too_far(order, reply, limits.max_update_norm)
        )

    return check


def _stale(order: Order, reply: Reply) -> str | None:
    return None if reply.round == order.round else f"answers round {reply.round}, but this is round {order.round}"


def _odd_numbers(reply: Reply, examples: int | None) -> str | None:
    if examples is None:
        return f"client {reply.client} is not of this federation"
    if not _is_number(reply.weight):
        return f"weight is {_short(reply.weight)}, not a number"
    if reply.weight > examples:
        return f"weight is {reply.weight:g}, but the client announced {examples} examples"
    if len(reply.metrics) > MAX_METRICS:
        return f"{len(reply.metrics)} metrics; at most {MAX_METRICS} are taken"
    for name, value in reply.metrics.items():
        if not isinstance(name, str) or len(name) > MAX_METRIC_NAME:
            return f"metric name {_short(name)} is not text of at most {MAX_METRIC_NAME} characters"
        if not _is_number(value):
            return f"metric '{name}' is {_short(value)}, not a number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _too_large(exchange: Exchange, reply: Reply, bound: int | None) -> str | None:
    if bound is None:
        return None
    size = num_wire_bytes(reply.params, exchange.wire)
    return None if size <= bound else f"{size} bytes of tensors; at most {bound} are taken"


def _unlike(exchange: Exchange, order: Order, reply: Reply) -> str | None:
    if exchange.expects is None:
        return None
    expected = exchange.expects(order)
    for name in reply.params:
        if name not in expected:
            return f"tensor {_short(name)} was not asked for"
    for name, sent in expected.items():
        tensor = reply.params.get(name)
        if tensor is None:
            return f"tensor '{name}' is missing"
        if tensor.shape != sent.shape:
            return f"tensor '{name}' has shape {tuple(tensor.shape)}, not {tuple(sent.shape)}"
        if tensor.dtype != sent.dtype:
            return f"tensor '{name}' is {tensor.dtype}, not {sent.dtype}"
    return None


def _too_far(order: Order, reply: Reply, bound: float | None) -> str | None:
    if bound is None:
        return None
    shared = [
        name
        for name, tensor in reply.params.items()
        if name in order.params and tensor.shape == order.params[name].shape and tensor.is_floating_point()
    ]
    norm = math.sqrt(squared_norm(sub(select(reply.params, shared), select(order.params, shared))))
    # written so that a norm which overflowed to NaN is refused too
    return None if norm <= bound else f"the update's norm is {norm:.4g}; at most {bound:g} is taken"
