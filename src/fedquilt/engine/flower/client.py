"""The client's side on Flower: a ClientApp with one train action for each exchange, and ``query.hello``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedquilt.core.errors import FedquiltError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.types import ClientId, Failure
from fedquilt.core.worker import Worker
from fedquilt.engine.flower.codec import read_order, reply_content
from fedquilt.engine.flower.handshake import Card
from fedquilt.engine.flower.memory_store import Shelf
from fedquilt.engine.flower.packing import MAX_BYTES, DecodeError, packed, unpacked
from fedquilt.privacy.ledger import Ledger, answered, ledger_folder
from fedquilt.privacy.ledger_book import Allowance

HELLO = "query.hello"
_FAILED = 2  # Flower's code for a ClientApp that raised an exception


@dataclass(frozen=True)
class Site:
    """One client where it lives: what the method's ``work`` is given, the method, and what the client announces."""

    id: ClientId
    client: Worker
    method: Method
    card: Card
    rows: str = ""
    """The digest of its rows, where they are its own."""


Join = Callable[[ClientId, Mapping[str, Any]], Site]
"""Gives the site of a partition on a node with this config; called for every message, so it keeps what is expensive."""


def client_app(
    join: Join, memories: Path | Callable[[Context], Path], *, mods: Sequence[Any] = (), max_bytes: int = MAX_BYTES
) -> ClientApp:
    """A ClientApp that works for the partition its node was started with.

    ``memories`` is the folder on the client's disk, or a function of the context that names it, in which private
    memory is kept. ``mods`` are Flower's; those that calculate with tensors refuse fedquilt's messages, whose tensors
    travel as bytes.
    """
    return _App(join, memories, list(mods), max_bytes)


def action_of(exchange: Exchange | str) -> str:
    """The name of an exchange as Flower allows it in a message type."""
    return re.sub(r"\W", "_", exchange if isinstance(exchange, str) else exchange.name)


def partition_of(context: Context) -> ClientId:
    """The partition that a node was started with.

    Raises
    ------
    FedquiltError
        if the node has none.
    """
    partition = context.node_config.get("partition-id")
    if not isinstance(partition, int) or isinstance(partition, bool):
        raise FedquiltError(
            f"node {context.node_id} has the partition-id {partition!r}; start it with "
            "--node-config 'partition-id=0' (its client's number)"
        )
    return partition


def allowance_of(context: Context) -> Allowance | None:
    """What the node's own config lets its client give away: ``epsilon``, at ``delta``; None if it does not say.

    Raises
    ------
    FedquiltError
        if one of them is no number that it could be.
    """
    node = context.node_config
    epsilon, delta = node.get("epsilon"), node.get("delta", 1e-5)
    if epsilon is None:
        return None
    for name, value, top in (("epsilon", epsilon, math.inf), ("delta", delta, 1.0)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < top:
            raise FedquiltError(
                f"node {context.node_id} has {name}={value!r} in its --node-config; give a number above 0"
                f"{f' and below {top:g}' if top == 1 else ''}, as in 'epsilon=8.0 delta=1e-5'"
            )
    return Allowance(float(epsilon), float(delta))


class _App(ClientApp):
    """A ClientApp whose train actions are known once its site is: they are the exchanges of the site's method."""

    def __init__(self, join: Join, memories: Path | Callable[[Context], Path], mods: list[Any], max_bytes: int) -> None:
        super().__init__(mods=mods)
        self._join, self._memories, self._max_bytes = join, memories, max_bytes
        self._actions: set[str] = set()
        self.query("hello")(_told(self._hello))

    def __call__(self, message: Message, context: Context) -> Message:
        category, _, action = message.metadata.message_type.partition(".")
        if category == "train" and action not in self._actions:
            try:
                method = self._site(context).method
            except FedquiltError as error:
                return _failure(str(error), message)
            for number, exchange in enumerate((*method.exchanges, *method.closing)):
                if action_of(exchange) not in self._actions:
                    self.train(action_of(exchange))(_told(self._worker(number)))
                    self._actions.add(action_of(exchange))
        return super().__call__(message, context)

    def _site(self, context: Context) -> Site:
        return self._join(partition_of(context), context.node_config)

    def _hello(self, message: Message, context: Context) -> Message:
        head, _ = unpacked(message.content, "the server", {})
        if head.get("kind") != "hello":
            raise DecodeError("the server sent a hello that is none")
        try:
            card: Mapping[str, Any] = self._site(context).card
        except FedquiltError as error:  # whose partition stays empty, and why
            card = {"partition": partition_of(context), "error": str(error)[:500]}
        answer: dict[str, Any] = {"kind": "card", "card": card}
        if key := context.node_config.get("key"):
            from fedquilt.engine.flower.seal import signature

            nonce, run = str(head.get("nonce"))[:64], str(head.get("run"))[:64]
            answer["signature"] = signature(Path(str(key)), answer["card"], nonce, run, context.node_id)
        return Message(packed(answer), reply_to=message)

    def _worker(self, number: int) -> Callable[[Message, Context], Message]:
        def work(message: Message, context: Context) -> Message:
            site = self._site(context)
            exchange = (*site.method.exchanges, *site.method.closing)[number]
            order, run = read_order(message.content, site.id, exchange.name, self._max_bytes)
            if not re.fullmatch(r"[0-9a-f]{8,64}", run):  # it names a folder
                raise DecodeError(f"the server sent the run key {run[:80]!r}, which is not a hexadecimal number")
            root = self._memories if isinstance(self._memories, Path) else self._memories(context)
            shelf, step = Shelf(shelf_folder(root, run, site.id)), (order.round, number)
            if site.rows:
                shelf.refuse_other_rows(site.rows)
            ledger = Ledger(ledger_folder(root, site.id), allowance_of(context))
            reply, memory = answered(ledger, run, exchange, site.client, site.id, order, lambda: shelf.before(step))
            if isinstance(reply, Failure):
                return _failure(reply.reason, message)
            content = reply_content(reply, order, exchange.name, run)
            shelf.keep(step, memory or {})  # before the reply leaves: what the server counts, the client remembers
            return Message(content, reply_to=message)

        return work


def shelf_folder(root: Path, run: str, client: ClientId) -> Path:
    """Where the memories of one client in one run lie."""
    return root / run / f"client-{client:03d}"


def _told(function: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """The function with errors meant for the user as error replies; Flower would wrap them in its own words."""

    def answered(message: Message, context: Context) -> Message:
        try:
            return function(message, context)
        except FedquiltError as error:
            return _failure(str(error), message)

    return answered


def _failure(reason: str, message: Message) -> Message:
    return Message(Error(_FAILED, reason), reply_to=message)
