"""``send`` over Flower's Grid: one message for each client in each exchange, and none that is not counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedquilt.core.errors import ConfigError, FedquiltError, RoundError
from fedquilt.core.method import Exchange
from fedquilt.core.rng import secret
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.engine.flower.client import HELLO, action_of
from fedquilt.engine.flower.codec import order_content, read_reply
from fedquilt.engine.flower.handshake import Card, examples, mismatches
from fedquilt.engine.flower.message_text import ABSENT, absent_text, answer_of, harmless, partitions_text
from fedquilt.engine.flower.packing import MAX_BYTES, Announced, is_int, packed, unpacked

Allowed = Callable[[Exchange, ClientId, Order], Announced | None]
"""The tensors that a client may send in reply to an order, or None if that is not known."""


_GREETING = 120.0  # seconds that a new node's hello may hold up a round


class GridEngine:
    """Gives ``send``. Which node holds which partition is asked once of every node; node numbers mean nothing else.

    ``cards`` are what each client must announce, ``run`` is the run's key (hexadecimal), ``timeout`` the seconds a
    reply may take. ``grace``, if given, are the seconds that an exchange still waits once ``enough(number of orders)``
    replies are there. ``messages`` counts what was sent, by message type; ``announced`` are the training rows that a
    client says it has, where its card leaves that open. ``watch(exchange, number of the reply, replies in all)`` is
    called after each. The clients' memories are on their own disks, so ``memories`` stays empty. ``stop``, once set,
    ends all waiting. ``keys`` are the public keys (lines of OpenSSH) that the partitions are tied to, if they are.
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
        keys: Mapping[ClientId, str] | None = None,
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
        self.keys = keys
        self.strangers: dict[int, str] = {}
        self._asked: set[int] = set()
        self._claims: dict[int, ClientId] = {}  # of nodes that were turned away because another held the partition
        self._nonce, self._began = f"{secret().integer(128):032x}", False

    def hello(self, wait: float = 300.0) -> None:
        """Wait until the clients' nodes are there and have said who they are: all, or after ``wait`` seconds enough.

        ``grace`` is how many seconds the others have once enough are there. A node that does not fit is turned away by
        name (``refused`` by client, ``strangers`` by node), and nobody waits for one that has no partition to fill.

        Raises
        ------
        ConfigError
            if too few are left because clients are not what the run expects; names each.
        RoundError
            if after ``wait`` seconds there are too few.
        """
        end, grace = time.monotonic() + wait, self.grace
        enough, waiting = self.enough(len(self.cards)), dict[str, int]()
        while True:
            online = self._online()
            invited = self._new(online) - {*waiting.values()}
            waiting.update(self._invited(invited, max(1.0, end - time.monotonic())))
            heard = {message.metadata.reply_to_message_id: message for message in self.grid.pull_messages([*waiting])}
            for id in [one for one in waiting if one in heard]:  # in the order in which they were asked
                self._seat(waiting.pop(id), answer_of(heard[id]), online)
            joined, now = len(self.nodes), time.monotonic()
            if joined == len(self.cards):
                break
            settled = not waiting and not self._new(self._online())
            if joined >= enough and (now >= end or (settled and not self._open)):
                break
            if now >= end or (settled and joined + len(self._open) < enough):
                raise self._too_few(wait, timed_out=now >= end and not self.refused)
            if grace is not None and joined >= enough:
                end, grace = min(end, now + grace), None
            self._sleep(min(self.poll, 0.2))
        self._began = True

    @property
    def _open(self) -> list[ClientId]:
        """The clients of which no node has spoken."""
        return sorted(self.cards.keys() - self.nodes.keys() - self.refused.keys())

    def _too_few(self, wait: float, timed_out: bool) -> FedquiltError:
        away = [f"refused before training: {words}" for _, words in sorted((self.refused | self.strangers).items())]
        if not timed_out:
            return ConfigError(away)
        return RoundError("; ".join([absent_text(self._open, len(self.cards), wait), *away]))

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

    def _new(self, online: set[int]) -> set[int]:
        """The nodes to ask who they are; one whose partition was held is asked again when the holder is gone."""
        free = {node for node, client in self._claims.items() if self.nodes.get(client) not in online}
        return (online - self._asked) | (online & free)

    def _invited(self, nodes: Iterable[int], seconds: float) -> dict[str, int]:
        """Ask nodes who they are; gives each by the number of its message, as far as Flower took it."""
        content = packed({"kind": "hello", "run": self.run, "nonce": self._nonce})
        asked = [*sorted(nodes)]
        self.messages[HELLO] = self.messages.get(HELLO, 0) + len(asked)
        messages = [Message(content, node, HELLO, group_id="0", ttl=min(seconds, self.timeout)) for node in asked]
        taken = self.grid.push_messages(messages) if messages else ()
        return {id: node for id, node in zip(taken, asked, strict=True) if id}

    def _greet(self, timeout: float) -> None:
        """Ask the nodes that are new who they are, in the midst of a run."""
        online = self._online()
        new = sorted(self._new(online))
        if not new:
            return
        content = packed({"kind": "hello", "run": self.run, "nonce": self._nonce})
        # a node that was killed counts as online for a while: nobody waits for it if all clients have answered
        missing = len(self.cards.keys() - self.nodes.keys()) or 1
        answers = self._ask({node: (node, content) for node in new}, HELLO, 0, min(timeout, self.timeout), missing, 0.0)
        for node, answer in sorted(answers.items()):
            self._seat(node, answer, online)
            if isinstance(answer, str):
                self._asked.add(node)  # it does not hold up every round

    def _seat(self, node: int, answer: Message | str, online: set[int]) -> None:
        """Note which partition a node holds; or why it gets none."""
        if isinstance(answer, str):  # it may only be slow, or no node of ours, or gone: it is asked again
            if not answer.startswith(ABSENT):
                self._asked.add(node)
                self.strangers[node] = f"node {node}: {answer}"
            return
        self._asked.add(node)
        self._claims.pop(node, None)
        try:
            client, wrong = self._judged(node, answer, online)
        except FedquiltError as error:
            client, wrong = None, str(error)
        if client is None:
            self.strangers[node] = wrong
        elif wrong:
            self.refused[client] = wrong
        else:
            self.nodes[client] = node
            self.refused.pop(client, None)
            self.strangers.pop(node, None)

    def _judged(self, node: int, answer: Message, online: set[int]) -> tuple[ClientId | None, str]:
        """The partition that a node holds, and what is wrong with what it announces; None if it is nobody's node."""
        head, _ = unpacked(answer.content, f"node {node}", {})
        announced = head.get("card")
        client = announced.get("partition") if isinstance(announced, dict) else None
        if not isinstance(announced, dict) or not is_int(client) or client not in self.cards:
            return (
                None,
                f"node {node} announces the partition {client!r:.40}; this run has {partitions_text(self.cards)}",
            )
        if self.keys is not None and not self._has_its_key(node, client, announced, head.get("signature")):
            return None, (
                f"node {node} claims partition {client} and does not show the key that network.node_keys ties it to; "
                "its site gives key='...' in the node's config, the private key whose public half is named there"
            )
        holder = self.nodes.get(client)
        if holder is not None and holder != node and holder in online:
            self._claims[node] = client  # the holder may be its own old self, which Flower takes a minute to miss
            return None, f"node {node} claims partition {client}, which node {holder} holds"
        if "error" in announced:
            return client, f"client {client}: {harmless(announced['error'])}"
        wrong = mismatches(announced, self.cards[client])
        if wrong:
            return client, f"client {client}: {'; '.join(wrong)}"
        if self.cards[client].get("num_examples") is None:
            if self._began and client not in self.announced:
                return client, f"client {client}: joined when the run had begun without it, and its rows are not in it"
            self.announced.setdefault(client, examples(announced) or 0)
        return client, ""

    def _has_its_key(self, node: int, client: ClientId, announced: Card, given: Any) -> bool:
        from fedquilt.engine.flower.seal import is_signed

        public = (self.keys or {}).get(client)
        return public is not None and is_signed(public, given, announced, self._nonce, self.run, node)

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
        answers.update(dict.fromkeys(waiting.values(), f"{ABSENT} within {seconds:g} s"))
        del sent, contents
        for message in self._pulled(waiting, seconds, enough, grace):
            # an error that Flower itself answers with does not come from the node's number: only this id tells whose
            key = waiting.pop(message.metadata.reply_to_message_id, None)
            if key is not None:
                answers[key] = answer_of(message)
        if grace is not None and sum(isinstance(answer, Message) for answer in answers.values()) >= enough:
            late = f"{ABSENT} within {grace:g} s after enough others had answered"
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
