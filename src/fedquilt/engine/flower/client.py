"""The client side on Flower: a ClientApp with one train action per exchange, ``query.hello``, and queries after a run.

A query's exchanges are actions of Flower's category ``query``. They start from what the client remembers of the run,
which they do not change; what they add is kept beside it until the query is over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedquilt.core.errors import ConfigError, FedquiltError, RunError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.query import KEY, Query
from fedquilt.core.types import ClientId, Failure, Order
from fedquilt.core.worker import Worker
from fedquilt.engine.flower.codec import read_order, reply_content
from fedquilt.engine.flower.handshake import Card
from fedquilt.engine.flower.memory_store import MemoryStore, QueryStore, memory_folder
from fedquilt.engine.flower.packing import MAX_BYTES, DecodeError, packed, unpacked
from fedquilt.privacy.answers import Answers, Noise, answers_folder
from fedquilt.privacy.ledger import Ledger, answered, ledger_folder
from fedquilt.privacy.ledger_book import Allowance

HELLO = "query.hello"
_FAILED = 2  # Flower's code for a ClientApp that raised an exception


@dataclass(frozen=True)
class Site:
    """One client at its site.

    Attributes
    ----------
    id
        The client's number.
    client
        The client that the method's ``work`` is called with.
    method
        The method.
    card
        What the client announces to the server.
    rows
        The digest of its rows, if the site has data files of its own.
    query
        Gives the client's side of a query; None where the site answers none.
    """

    id: ClientId
    client: Worker
    method: Method
    card: Card
    rows: str = ""
    query: Callable[[], Query] | None = None


Join = Callable[[ClientId, Mapping[str, Any]], Site]
"""Returns the site of a partition on a node with this config; called for every message, so it should cache."""


def client_app(
    join: Join, memories: Path | Callable[[Context], Path], *, mods: Sequence[Any] = (), max_bytes: int = MAX_BYTES
) -> ClientApp:
    """Make a ClientApp that works for the partition that its node was started with.

    ``memories`` is the folder on the client's disk for private memories, or a function of the context that returns it.
    ``mods`` are Flower's; mods that compute on tensors fail on fedquilt's messages, whose tensors are sent as bytes.
    """
    return _App(join, memories, list(mods), max_bytes)


def action_of(exchange: Exchange | str) -> str:
    """Return the name of an exchange in the form that Flower allows in a message type."""
    return re.sub(r"\W", "_", exchange if isinstance(exchange, str) else exchange.name)


def partition_of(context: Context) -> ClientId:
    """Return the partition that a node was started with.

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
    """Return the privacy allowance in the node's own config (``epsilon`` at ``delta``); None if it sets none.

    Raises
    ------
    FedquiltError
        if one of them is not a number in its range.
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


def most_answers(context: Context) -> int | None:
    """Return how many queries a node answers by its own config (``max_queries``); None if it sets no bound.

    Raises
    ------
    FedquiltError
        if it is not a whole number.
    """
    most = context.node_config.get("max_queries")
    if most is None:
        return None
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise FedquiltError(
            f"node {context.node_id} has max_queries={most!r} in its --node-config; give a whole number, 0 for none"
        )
    return most


class _App(ClientApp):
    """A ClientApp whose train actions, the exchanges of the site's method, are registered with the first message."""

    def __init__(self, join: Join, memories: Path | Callable[[Context], Path], mods: list[Any], max_bytes: int) -> None:
        super().__init__(mods=mods)
        self._join, self._memories, self._max_bytes = join, memories, max_bytes
        self._actions: set[str] = set()
        self.query("hello")(_with_error_replies(self._hello))

    def __call__(self, message: Message, context: Context) -> Message:
        category, _, action = message.metadata.message_type.partition(".")
        if category in ("train", "query") and f"{category}.{action}" not in {*self._actions, HELLO}:
            try:
                exchanges = self._exchanges(category, context)
            except FedquiltError as error:
                return _failure(str(error), message)
            register, worker = (self.train, self._worker) if category == "train" else (self.query, self._answerer)
            for number, exchange in enumerate(exchanges):
                if (name := f"{category}.{action_of(exchange)}") not in self._actions:
                    register(action_of(exchange))(_with_error_replies(worker(number)))
                    self._actions.add(name)
        return super().__call__(message, context)

    def _exchanges(self, category: str, context: Context) -> tuple[Exchange, ...]:
        """The exchanges of a run, or of a query."""
        site = self._site(context)
        return (*site.method.exchanges, *site.method.closing) if category == "train" else query_of(site).exchanges

    def _site(self, context: Context) -> Site:
        return self._join(partition_of(context), context.node_config)

    def _hello(self, message: Message, context: Context) -> Message:
        head, _ = unpacked(message.content, "the server", {})
        if head.get("kind") != "hello":
            raise DecodeError("the server sent a hello that is none")
        try:
            card: Mapping[str, Any] = self._site(context).card
        except FedquiltError as error:  # the server needs to know which partition fails to join, and why
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
            order, run = self._order(message, site, exchange)
            root = self._root(context)
            store, step = MemoryStore(memory_folder(root, run, site.id)), (order.round, number)
            if site.rows:
                store.refuse_other_rows(site.rows)
            ledger = Ledger(ledger_folder(root, site.id), allowance_of(context))
            reply, memory = answered(ledger, run, exchange, site.client, site.id, order, lambda: store.before(step))
            if isinstance(reply, Failure):
                return _failure(reply.reason, message)
            content = reply_content(reply, order, exchange.name, run)
            store.keep(step, memory or {})  # before the reply is sent, so that no reply is counted without its memory
            return Message(content, reply_to=message)

        return work

    def _answerer(self, number: int) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            site = self._site(context)
            query = query_of(site)
            exchange = query.exchanges[number]
            order, run = self._order(message, site, exchange)
            key = _key(str(order.settings.get(KEY)), "query")
            root = self._root(context)
            store = MemoryStore(memory_folder(root, run, site.id))
            trained = store.before((order.round, 0))
            if not trained:
                raise RunError(f"this site has no memory of the run {run[:8]}, so it cannot answer about new rows")
            if site.rows:
                store.refuse_other_rows(site.rows)
            beside = QueryStore(store.folder, key, len(query.exchanges))
            memory = {**trained, **beside.before((order.round, number))}
            ledger = Ledger(ledger_folder(root, site.id), allowance_of(context))
            # under the query's key: a later query has the same exchanges and the same round
            reply, after = answered(ledger, key, exchange, query.client, site.id, order, lambda: memory)
            if isinstance(reply, Failure):
                return _failure(reply.reason, message)
            if number == len(query.exchanges) - 1:  # the answer itself, which is counted before it is sent
                noise = Noise(query.noise, query.delta)
                account = Answers(answers_folder(root, site.id), most_answers(context))
                account.count(run, query.rows(memory), noise, reply.params)
            content = reply_content(reply, order, exchange.name, run)
            added = {name: value for name, value in (after or {}).items() if value is not trained.get(name)}
            beside.keep((order.round, number), added)
            return Message(content, reply_to=message)

        return answer

    def _order(self, message: Message, site: Site, exchange: Exchange) -> tuple[Order, str]:
        """The order in a message, and the run's key."""
        order, run = read_order(message.content, site.id, exchange.name, self._max_bytes)
        return order, _key(run, "run")

    def _root(self, context: Context) -> Path:
        return self._memories if isinstance(self._memories, Path) else self._memories(context)


def query_of(site: Site) -> Query:
    """The site's side of a query.

    Raises
    ------
    ConfigError
        if it answers none.
    """
    if site.query is None:
        raise ConfigError(
            "this site answers no queries; start its node with the file of the rows that it answers about, as in "
            "--node-config \"query='/path/rows.csv'\""
        )
    return site.query()


def _key(key: str, of: str) -> str:
    """The key ``of`` a run or a query, which the server sent and which names a folder."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", key):
        raise DecodeError(f"the server sent the {of} key {key[:80]!r}, which is not a hexadecimal number")
    return key


def _with_error_replies(function: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """Wrap the function so that errors for the user become error replies, whose text Flower leaves as it is."""

    def answered(message: Message, context: Context) -> Message:
        try:
            return function(message, context)
        except FedquiltError as error:
            return _failure(str(error), message)

    return answered


def _failure(reason: str, message: Message) -> Message:
    return Message(Error(_FAILED, reason), reply_to=message)
