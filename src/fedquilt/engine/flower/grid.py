"""``send`` over Flower's Grid: one message for each client in each exchange, and none that is not counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedquilt.core.errors import ConfigError, FedquiltError, RoundError
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.engine.flower.client import HELLO, action_of
from fedquilt.engine.flower.codec import order_content, read_reply
from fedquilt.engine.flower.hello import Card, examples, mismatches
from fedquilt.engine.flower.packing import MAX_BYTES, Announced, packed, unpacked

Allowed = Callable[[Exchange, ClientId, Order], Announced | None]
"""The tensors that a client may send in reply to an order, or None if that is not known."""


_ABSENT = "no reply"
_GREETING = 120.0  # seconds that a new node's hello may hold up a round
_GONE = (3, 4, 5)  # Flower's codes for a message or a reply that is gone, and for a node that is


class GridEngine:
    """Gives ``send``. Which node holds which partition is asked once of every node; node numbers mean nothing else.

    ``cards`` are what each client must announce, ``run`` is the run's key (hexadecimal), ``timeout`` the seconds a
    reply may take. ``grace``, if given, are the seconds that an exchange still waits once ``enough(number of orders)``
    replies are there. ``messages`` counts what was sent, by message type; ``announced`` are the training rows that a
    client says it has, where its card leaves that open. ``watch(exchange, number of the reply, replies in all)`` is
    called after each. The clients' memories are on their own disks, so ``memories`` stays empty. ``stop``, once set,
    ends all waiting.
    """

    has_clients = False

    def __init__(
        self,
        grid: Grid,
        cards: Mapping[ClientId, Card],
        run: str,
        *,
        timeout: float = 3600.0,
        grace: float | None = None,
        enough: Callable[[int], int] = lambda orders: orders,
        allowed: Allowed = lambda exchange, client, order: None,
        max_bytes: int = MAX_BYTES,
        watch: Callable[[str, int, int], None] | None = None,
        poll: float = 1.0,
        stop: threading.Event | None = None,
    ) -> None:
        self.grid, self.cards, self.run = grid, cards, run
        self.timeout, self.allowed, self.max_bytes, self.watch, self.poll = timeout, allowed, max_bytes, watch, poll
        self.grace, self.enough = grace, enough
        self.stop = stop or threading.Event()
        self.announced: dict[ClientId, int] = {}
        self.memories: dict[ClientId, Memory] = {}
        self.nodes: dict[ClientId, int] = {}
        self.refused: dict[ClientId, str] = {}
        self.messages: dict[str, int] = {}
        self._asked: set[int] = set()

    def hello(self, wait: float = 300.0) -> None:
        """Wait until every client's node is there and has said who it is.

        Raises
        ------
        ConfigError
            if a client is not what the run expects, or two nodes claim one partition; names each.
        RoundError
            if after ``wait`` seconds a client is missing.
        """
        end = time.monotonic() + wait
        while True:
            problems = self._greet(max(1.0, end - time.monotonic()))
            if problems:
                raise ConfigError([f"refused before training: {problem}" for problem in problems])
            missing = sorted(self.cards.keys() - self.nodes.keys())
            if not missing:
                return
            if time.monotonic() >= end:
                raise RoundError(
                    f"{len(missing)} of {len(self.cards)} clients did not join within {wait:g} s (partitions "
                    f"{', '.join(map(str, missing[:10]))}{' and more' if len(missing) > 10 else ''}); start their "
                    "SuperNodes with --node-config 'partition-id=...', or wait longer"
                )
            self._sleep(min(self.poll, 0.2))

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """The replies in client order; a client without a usable one is a Failure that says why."""
        online = self._online()
        if any(self.nodes.get(client) not in online for client in orders):
            self._greet(_GREETING)  # a node that came back without its key has another number
        contents = {
            client: order_content(orders[client], client, exchange.name, self.run)
            for client in sorted(orders)
            if client in self.nodes
        }
        kind, number = f"train.{action_of(exchange)}", next(iter(orders.values())).round if orders else 0
        asked = {client: (self.nodes[client], content) for client, content in contents.items()}
        answers = self._ask(asked, kind, number, self.timeout, self.enough(len(orders)), self.grace)
        for count, client in enumerate(sorted(orders), start=1):
            yield self._reply(exchange, client, orders[client], answers.pop(client, None))
            if self.watch:
                self.watch(exchange.name, count, len(orders))

    def _reply(
        self, exchange: Exchange, client: ClientId, order: Order, answer: Message | str | None
    ) -> Reply | Failure:
        if answer is None:
            reason = self.refused.get(client, f"no node holds partition {client}")
            return Failure(client, reason)
        if isinstance(answer, str):
            return Failure(client, answer)
        try:
            allowed = self.allowed(exchange, client, order)
            return read_reply(answer.content, client, order, exchange.name, self.run, allowed, self.max_bytes)
        except FedquiltError as error:
            return Failure(client, str(error))

    # Nodes and partitions ------------------------------------------------------------

    def _online(self) -> set[int]:
        return set(self.grid.get_node_ids())

    def _greet(self, timeout: float) -> list[str]:
        """Ask the nodes that are new who they are; gives what is wrong with them in words."""
        online = self._online()
        new = sorted(online - self._asked)
        if not new:
            return []
        content = packed({"kind": "hello", "run": self.run})
        # a node that was killed counts as online for a while: nobody waits for it if all clients have answered
        missing = len(self.cards.keys() - self.nodes.keys()) or 1
        answers = self._ask({node: (node, content) for node in new}, HELLO, 0, min(timeout, self.timeout), missing, 0.0)
        problems = []
        for node, answer in sorted(answers.items()):
            problem = self._seat(node, answer, online)
            if problem is not None:
                problems.append(problem)
        return problems

    def _seat(self, node: int, answer: Message | str, online: set[int]) -> str | None:
        """Note which partition a node holds; or say why it gets none."""
        if isinstance(answer, str):  # it may be starting up: it is asked again
            return None if answer.startswith(_ABSENT) else f"node {node}: {answer}"
        self._asked.add(node)
        try:
            head, _ = unpacked(answer.content, f"node {node}", {})
        except FedquiltError as error:
            return str(error)
        announced = head.get("card")
        client = announced.get("partition") if isinstance(announced, dict) else None
        if not isinstance(announced, dict) or not isinstance(client, int) or client not in self.cards:
            return f"node {node} announces the partition {client!r:.40}; this run has {_range(self.cards)}"
        holder = self.nodes.get(client)
        if holder is not None and holder in online:
            self._asked.discard(node)  # the holder may be this node's old self, which Flower takes a minute to miss
            return f"node {node} claims partition {client}, which node {holder} holds"
        wrong = mismatches(announced, self.cards[client])
        if wrong:
            self.refused[client] = f"client {client}: {'; '.join(wrong)}"
            return self.refused[client]
        self.nodes[client] = node
        if self.cards[client].get("num_examples") is None:
            self.announced[client] = examples(announced) or 0
        self.refused.pop(client, None)
        return None

    # Messages ------------------------------------------------------------

    def _ask(
        self,
        contents: Mapping[int, tuple[int, RecordDict]],
        kind: str,
        number: int,
        seconds: float,
        enough: int,
        grace: float | None,
    ) -> dict[int, Message | str]:
        """The answer to each message by its key: a message with content, or in words why there is none.

        They have ``seconds``; once ``enough`` have answered, the rest has ``grace`` seconds left, if that is given.
        """
        sent = {
            key: Message(content, node, kind, group_id=str(number), ttl=seconds)
            for key, (node, content) in contents.items()
        }
        self.messages[kind] = self.messages.get(kind, 0) + len(sent)
        answers: dict[int, Message | str] = dict.fromkeys(sent, "Flower did not accept the message to its node")
        taken = {id for id in self.grid.push_messages([*sent.values()]) if id}
        waiting = {m.metadata.message_id: key for key, m in sent.items() if m.metadata.message_id in taken}
        answers.update(dict.fromkeys(waiting.values(), f"{_ABSENT} within {seconds:g} s"))
        del sent, contents
        for message in self._pulled(waiting, seconds, enough, grace):
            # an error that Flower itself answers with does not come from the node's number: only this id tells whose
            key = waiting.pop(message.metadata.reply_to_message_id, None)
            if key is not None:
                answers[key] = _said(message)
        if grace is not None and sum(isinstance(answer, Message) for answer in answers.values()) >= enough:
            late = f"{_ABSENT} within {grace:g} s after enough others had answered"
            answers.update(dict.fromkeys(waiting.values(), late))
        return answers

    def _pulled(
        self, waiting: Mapping[str, Any], seconds: float, enough: int, grace: float | None
    ) -> Iterator[Message]:
        """The messages that come, until nobody is waited for or the time is up."""
        end, pause, good = time.monotonic() + seconds, 0.02, 0
        while waiting:
            got: Iterable[Message] = [*self.grid.pull_messages([*waiting])]
            yield from got
            good += sum(message.has_content() for message in got)
            if grace is not None and good >= enough:
                end, grace = min(end, time.monotonic() + grace), None
            if not waiting or time.monotonic() >= end:
                return
            self._sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = self.poll if pause * 1.5 > self.poll else pause * 1.5

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise RoundError("Flower's engine ended while clients were at work")


def _said(message: Message) -> Message | str:
    if not message.has_error():
        return message
    reason = message.error.reason or f"Flower's error {message.error.code}"
    # a stranger's words: no line breaks, and nothing that a terminal would obey
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(reason.split()))[:500]
    return f"{_ABSENT}: {text}" if message.error.code in _GONE else text


def _range(cards: Sequence[ClientId] | Mapping[ClientId, Any]) -> str:
    ids = sorted(cards)
    return f"the partitions {ids[0]} to {ids[-1]}" if ids else "no partitions"
