"""Checks of every reply before it reaches ``merge``; replies are untrusted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedquilt.core.bounds import moved_far, starts
from fedquilt.core.defence import UNBOUNDED, Defence
from fedquilt.core.errors import written
from fedquilt.core.method import Exchange
from fedquilt.core.params import not_finite
from fedquilt.core.types import Order, Profile, Range, Reply, Tree
from fedquilt.core.wire import num_wire_bytes

Check = Callable[[Exchange, Order, Reply], str | None]
"""Why a reply to an order must not reach ``merge``, or None if it may; ``reply_check`` makes one."""

MAX_METRICS, MAX_METRIC_NAME = 1000, 100
"""Most metrics of a reply where the exchange declares none, and most characters of a metric's name."""

MIN_WEIGHT = 2.0**-20
"""Smallest weight of a reply, in examples: quotients of weights this small still have full precision."""

MAX_GROWTH = 1e6
"""Largest ratio of a number in a reply to the largest start value, or to 1 if that is larger."""

MAX_VALUE = 1e12
"""Largest number in a reply: products of two such numbers, and their squares, do not overflow float32."""

_FINITE = Range(-sys.float_info.max, sys.float_info.max)


def reply_check(profiles: Iterable[Profile], defence: Defence = UNBOUNDED) -> Check:
    """Return ``check(exchange, order, reply)``, which gives the reason to drop a reply, or None.

    The cheapest checks come first. A reply must

    - answer this round's order;
    - have a weight of at most the number of examples that its client announced;
    - hold few and finite metrics, each within the range that its exchange declares;
    - stay within ``defence.max_reply_bytes``, counted as its tensors travelled, and ``defence.max_update_norm``, over
      all tensors that have a start value;
    - hold exactly the tensors that the exchange expects, with their shapes and dtypes, if the exchange has ``expects``;
    - hold finite numbers within ``MAX_GROWTH``, ``MAX_VALUE`` and the ranges of the exchange.
    """
    examples = {profile.id: profile.num_examples for profile in profiles}

    def check(exchange: Exchange, order: Order, reply: Reply) -> str | None:
        return (
            _stale(order, reply)
            or _odd_weight(reply, examples.get(reply.client))
            or _odd_metrics(exchange, order, reply)
            or _too_large(exchange, reply, defence.max_reply_bytes)
            or _unlike(exchange, order, reply)
            or refusal(reply)
            or _too_far(exchange, order, reply, defence.max_update_norm)
            or _out_of_range(exchange, order, reply)
        )

    return check


def refusal(reply: Reply) -> str | None:
    """The reason why a reply must not reach ``merge``, or None: weight, metrics and tensors must be finite."""
    if _problem(reply.weight) or not reply.weight > 0:
        return f"weight is {shown(reply.weight)}, not a number above 0"
    if reply.weight < MIN_WEIGHT:
        return f"weight is {shown(reply.weight)}; it must be at least {MIN_WEIGHT:.3g} examples"
    for name, value in reply.metrics.items():
        if _problem(value):
            return f"{shown(name, bare=True)} is {shown(value)}"
    tensor = not_finite(reply.params)
    return None if tensor is None else f"tensor {shown(tensor)} is not finite"


def broken(tree: Tree, before: Tree, path: str = "") -> str | None:
    """The path of the first changed value of a merged tree that is not finite, or None."""
    if tree is before:
        return None
    if isinstance(tree, float):
        return None if math.isfinite(tree) else path
    if isinstance(tree, Tensor):
        return path if tree.is_floating_point() and not_finite({path: tree}) is not None else None
    inside = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        old = before.get(key) if isinstance(before, Mapping) else None
        if (found := broken(value, old, f"{path}.{key}" if path else str(key))) is not None:
            return found
    return None


def declared(exchange: Exchange, order: Order, reply: Reply) -> Reply:
    """The reply with only the metrics that its exchange declares; with all of them if it declares none."""
    if exchange.metrics is None:
        return reply
    wanted = exchange.metrics(order)
    return replace(reply, metrics={name: value for name, value in reply.metrics.items() if name in wanted})


def shown(value: Any, *, bare: bool = False) -> str:
    """An untrusted value as text of at most about 40 characters; strings without quotes if ``bare``."""
    text = value if bare and isinstance(value, str) else written(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _problem(value: Any, within: Range = _FINITE) -> str | None:
    """The problem with an untrusted number, in words, or None.

    Booleans, text, NaN, infinities and integers beyond the range of floats are rejected. All checks of numbers are
    done here.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"is {shown(value)}, not a number"
    if not within.low <= value <= within.high:  # Python compares integers of any size with floats, exactly
        return f"is {shown(value)}; it must be from {within.low:g} to {within.high:g}"
    if within.whole and value != int(value):
        return f"is {shown(value)}; it must be an integer"
    return None


def _stale(order: Order, reply: Reply) -> str | None:
    if reply.round == order.round:
        return None
    answered = reply.round + 1 if type(reply.round) is int else reply.round  # people count from 1
    return f"answers round {shown(answered)}, but this is round {order.round + 1}"


def _odd_weight(reply: Reply, examples: int | None) -> str | None:
    if examples is None:
        return f"client {reply.client} is not part of this federation"
    if not isinstance(reply.weight, int | float) or isinstance(reply.weight, bool):
        return f"weight is {shown(reply.weight)}, not a number"
    if reply.weight > examples:
        weight = f"{reply.weight:g}" if _problem(reply.weight) is None else shown(reply.weight)
        return f"weight is {weight}, but the client announced {examples} examples"
    return None


def _odd_metrics(exchange: Exchange, order: Order, reply: Reply) -> str | None:
    wanted = None if exchange.metrics is None else exchange.metrics(order)
    if wanted is None and len(reply.metrics) > MAX_METRICS:
        return f"{len(reply.metrics)} metrics; at most {MAX_METRICS} are allowed"
    for name, value in reply.metrics.items():
        if not isinstance(name, str) or len(name) > MAX_METRIC_NAME:
            return f"metric name {shown(name)} is not text of at most {MAX_METRIC_NAME} characters"
        if wanted is not None and name not in wanted:
            return f"metric {shown(name)} was not asked for"
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"metric '{name}' is {shown(value)}, not a number"
        if wanted is not None and (problem := _problem(value, wanted[name])):
            return f"metric '{name}' {problem}"
    return None


def _too_large(exchange: Exchange, reply: Reply, bound: int | None) -> str | None:
    if bound is None:
        return None
    size = num_wire_bytes(reply.params, exchange.wire)
    return None if size <= bound else f"{size} bytes of tensors; at most {bound} are allowed"


def _unlike(exchange: Exchange, order: Order, reply: Reply) -> str | None:
    if exchange.expects is None:
        return None
    expected = exchange.expects(order)
    for name in reply.params:
        if name not in expected:
            return f"tensor {shown(name)} was not asked for"
    for name, sent in expected.items():
        tensor = reply.params.get(name)
        if tensor is None:
            return f"tensor '{name}' is missing"
        if tensor.shape != sent.shape:
            return f"tensor '{name}' has shape {tuple(tensor.shape)}, not {tuple(sent.shape)}"
        if tensor.dtype != sent.dtype:
            return f"tensor '{name}' is {tensor.dtype}, not {sent.dtype}"
    return None


def _too_far(exchange: Exchange, order: Order, reply: Reply, bound: float | None) -> str | None:
    if bound is None:
        return None
    norm = moved_far(exchange, order, reply).norm
    # written so that a norm which overflowed to NaN is rejected too
    return None if norm <= bound else f"the update's norm is {norm:.4g}; at most {bound:g} is allowed"


def _out_of_range(exchange: Exchange, order: Order, reply: Reply) -> str | None:
    ranges = {} if exchange.ranges is None else exchange.ranges(order)
    began = starts(exchange, order)
    for name, tensor in reply.params.items():
        if not tensor.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(tensor.detach()))
        within = ranges.get(name) or reach(began.get(name))
        if not within.low <= low <= high <= within.high:
            odd = high if within.low <= low else low
            return f"tensor '{name}' holds {odd:.4g}; it must be from {within.low:.4g} to {within.high:.4g}"
    return None


def reach(began: Tensor | None) -> Range:
    """The allowed range of a tensor in a reply, given the tensor that training started from (None: not sent)."""
    known = began is not None and began.numel() and not began.is_meta and began.is_floating_point()
    first = max(abs(float(end)) for end in torch.aminmax(began.detach())) if began is not None and known else 1.0
    high = min(MAX_VALUE, MAX_GROWTH * max(1.0, first)) if began is not None else MAX_VALUE
    high = max(high, 2 * first)  # a small change of what was sent is always allowed
    return Range(-high, high)
