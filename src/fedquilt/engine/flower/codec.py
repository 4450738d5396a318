"""Orders and replies as Flower messages, and back: bit-identical, and checked as untrusted input.

Readers check the sender of a message and the order that it answers, so a reply of another round, run, exchange or
client is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from flwr.app import RecordDict

from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Order, Reply
from fedquilt.engine.flower.packing import MAX_BYTES, Announced, DecodeError, is_int, packed, shown, unpacked


def order_content(order: Order, client: ClientId, exchange: str, run: str) -> RecordDict:
    """Encode an order to ``client`` as records; ``run`` is the run's key."""
    head = {
        "kind": "order",
        "run": run,
        "client": client,
        "exchange": exchange,
        "round": order.round,
        "seed": order.rng.seed,
        "path": list(order.rng.path),
        "settings": _plain(order.settings, "settings"),
    }
    return packed(head, order.params)


def read_order(content: RecordDict, client: ClientId, exchange: str, max_bytes: int = MAX_BYTES) -> tuple[Order, str]:
    """Decode the order in a message to ``client``; returns it and the run's key.

    Raises
    ------
    DecodeError
        if the message is malformed, or is for another client or exchange.
    """
    sender = "the server"
    head, params = unpacked(content, sender, None, max_bytes)
    _check_head(head, {"kind": "order", "client": client, "exchange": exchange}, sender)
    number, seed, path, settings, run = (head.get(key) for key in ("round", "seed", "path", "settings", "run"))
    if not is_int(number) or number < 0 or not is_int(seed):
        raise DecodeError(f"{sender} sent round {shown(number)} and seed {shown(seed)}, which are not whole numbers")
    if not isinstance(path, list) or not all(isinstance(name, str) or is_int(name) for name in path):
        raise DecodeError(f"{sender} sent the random stream {shown(path)}, which is not a list of names")
    if not isinstance(settings, dict) or not isinstance(run, str):
        raise DecodeError(f"{sender} sent an order without settings or without its run's key")
    return Order(params, settings, number, Rng(seed, tuple(path))), run


def reply_content(reply: Reply, order: Order, exchange: str, run: str) -> RecordDict:
    """Encode the reply to an order as records."""
    head = {
        "kind": "reply",
        "run": run,
        "client": reply.client,
        "exchange": exchange,
        "round": order.round,
        "weight": reply.weight,
        "metrics": _plain(reply.metrics, "metrics"),
    }
    return packed(head, reply.params)


def read_reply(
    content: RecordDict,
    client: ClientId,
    order: Order,
    exchange: str,
    run: str,
    allowed: Announced | None = None,
    max_bytes: int = MAX_BYTES,
) -> Reply:
    """Decode the reply of ``client`` to ``order``; numbers and tensors may still be NaN, which the loop rejects.

    Parameters
    ----------
    content
        The message.
    client, order, exchange, run
        Whom the message must be from, and the order, exchange and run that it must answer.
    allowed
        The tensors that the reply may hold; None for any.
    max_bytes
        The most bytes of tensors that are accepted.

    Raises
    ------
    DecodeError
        if the message is malformed, holds tensors that are not allowed, or answers another order.
    """
    sender = f"client {client}"
    head, params = unpacked(content, sender, allowed, max_bytes)
    wanted = {"kind": "reply", "run": run, "client": client, "exchange": exchange, "round": order.round}
    _check_head(head, wanted, sender)
    weight, metrics = head.get("weight"), head.get("metrics")
    if not _is_number(weight):
        raise DecodeError(f"{sender} sent the weight {shown(weight)}, which is not a number")
    if not isinstance(metrics, dict) or not all(_is_number(value) for value in metrics.values()):
        raise DecodeError(f"{sender} sent metrics that are not numbers by name")
    return Reply(client, params, weight, metrics, order.round)


def _check_head(head: Mapping[str, Any], wanted: Mapping[str, Any], sender: str) -> None:
    for key, value in wanted.items():
        if head.get(key) != value or isinstance(head.get(key), bool):
            raise DecodeError(f"{sender} sent {key} {shown(head.get(key))} where {shown(value)} is expected")


def _plain(value: Any, where: str) -> Any:
    """Return ``value`` (tuples as lists) if JSON preserves it; else raise TypeError."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; only numbers, text, lists and dicts of them can be sent")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) or (is_int(value) and abs(value) < 1 << 63)
