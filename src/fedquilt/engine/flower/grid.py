"""The engine over Flower's Grid: one message per client and exchange, and every message is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Message
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
from fedquilt.engine.flower.post import Post

Allowed = Callable[[Exchange, ClientId, Order], Announced | None]
"""Returns the tensors that a client may send in reply to an order; None if they are not known."""

_GREETING = 120.0  # seconds that a round waits for the announcement of a new node


class GridEngine:
    """Provides ``send`` over a Grid; every node is asked once which partition it holds.

    ``messages`` is the number of messages sent, by type; ``announced`` the number of training rows that clients
    announced where their cards leave it open. ``memories`` stays empty, because clients keep theirs on their own disks.

    Parameters
    ----------
    grid
        Flower's Grid.
    cards
        What each client must announce.
    run
        The run's key (hexadecimal).
    timeout
        Seconds that a reply may take.
    grace, enough
        Once ``enough(number of orders)`` replies are there, an exchange waits ``grace`` more seconds; None: the full
        time.
    allowed
        The tensors that a reply may hold.
    max_bytes
        The most bytes of tensors that are accepted in a reply.
    watch
        Called after each reply with the exchange's name, the number of the reply and the total.
    poll
        Longest pause in seconds between two looks for messages.
    stop
        Once set, ends all waiting.
    keys
        Public keys (lines in OpenSSH format) that the partitions are tied to; None if they are not.
    category
        Flower's category of the messages: ``"train"``, or ``"query"`` after a run.
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
        category: str = "train",
    ) -> None:
        self.grid, self.cards, self.run = grid, cards, run
        self.timeout, self.allowed, self.max_bytes, self.watch = timeout, allowed, max_bytes, watch
        self.grace, self.enough = grace, enough
        self.post = Post(grid, poll, stop or threading.Event())
        self.announced: dict[ClientId, int] = {}
        self.memories: dict[ClientId, Memory] = {}
        self.nodes: dict[ClientId, int] = {}
        self.refused: dict[ClientId, str] = {}
        self.messages = self.post.counts
        self.keys, self.category = keys, category
        self.rejected_nodes: dict[int, str] = {}
        self._asked: set[int] = set()
        self._claims: dict[int, ClientId] = {}  # rejected nodes whose partition another node held
        self._nonce, self._began = f"{secret().integer(128):032x}", False

    def hello(self, wait: float = 300.0) -> None:
        """Wait until the clients' nodes have announced themselves: all, or after ``wait`` seconds enough of them.

        Once enough have joined, the others have ``grace`` seconds left. A node that does not match is rejected with a
        reason (``refused`` by client, ``rejected_nodes`` by node). A node that can fill no open partition is not
        waited for.

        Raises
        ------
        ConfigError
            if too few are left because clients do not match the run; names each.
        RoundError
            if there are too few after ``wait`` seconds.
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
            self.post.sleep(min(self.post.poll, 0.2))
        self._began = True

    @property
    def _open(self) -> list[ClientId]:
        """The clients that no node has announced."""
        return sorted(self.cards.keys() - self.nodes.keys() - self.refused.keys())

    def _too_few(self, wait: float, timed_out: bool) -> FedquiltError:
        reasons = sorted((self.refused | self.rejected_nodes).items())
        away = [f"refused before training: {reason}" for _, reason in reasons]
        if not timed_out:
            return ConfigError(away)
        return RoundError("; ".join([absent_text(self._open, len(self.cards), wait), *away]))

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """Yield the replies in client order; a client without a usable reply gives a Failure with the reason."""
        online = self._online()
        if any(self.nodes.get(client) not in online for client in orders):
            self._greet(_GREETING)  # a node that returned without its key has a new id
        contents = {
            client: order_content(orders[client], client, exchange.name, self.run)
            for client in sorted(orders)
            if client in self.nodes
        }
        kind, number = f"{self.category}.{action_of(exchange)}", next(iter(orders.values())).round if orders else 0
        asked = {client: (self.nodes[client], content) for client, content in contents.items()}
        answers = self.post.ask(asked, kind, number, self.timeout, self.enough(len(orders)), self.grace)
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
        """The nodes to ask for their cards; one whose partition was taken is asked again when the holder is gone."""
        free = {node for node, client in self._claims.items() if self.nodes.get(client) not in online}
        return (online - self._asked) | (online & free)

    def _invited(self, nodes: Iterable[int], seconds: float) -> dict[str, int]:
        """Ask nodes for their cards; returns the nodes by message id, without messages that Flower did not accept."""
        content = packed({"kind": "hello", "run": self.run, "nonce": self._nonce})
        asked = [*sorted(nodes)]
        self.post.count(HELLO, len(asked))
        messages = [Message(content, node, HELLO, group_id="0", ttl=min(seconds, self.timeout)) for node in asked]
        taken = self.grid.push_messages(messages) if messages else ()
        return {id: node for id, node in zip(taken, asked, strict=True) if id}

    def _greet(self, timeout: float) -> None:
        """Ask new nodes for their cards during a run."""
        online = self._online()
        new = sorted(self._new(online))
        if not new:
            return
        content = packed({"kind": "hello", "run": self.run, "nonce": self._nonce})
        # a killed node counts as online for a while, so stop waiting when all missing clients have answered
        missing = len(self.cards.keys() - self.nodes.keys()) or 1
        answers = self.post.ask(
            {node: (node, content) for node in new}, HELLO, 0, min(timeout, self.timeout), missing, 0.0
        )
        for node, answer in sorted(answers.items()):
            self._seat(node, answer, online)
            if isinstance(answer, str):
                self._asked.add(node)  # so that it does not delay every round

    def _seat(self, node: int, answer: Message | str, online: set[int]) -> None:
        """Record which partition a node holds, or why it is rejected."""
        if isinstance(answer, str):  # if it was only slow or is gone, it is asked again
            if not answer.startswith(ABSENT):
                self._asked.add(node)
                self.rejected_nodes[node] = f"node {node}: {answer}"
            return
        self._asked.add(node)
        self._claims.pop(node, None)
        try:
            client, wrong = self._checked(node, answer, online)
        except FedquiltError as error:
            client, wrong = None, str(error)
        if client is None:
            self.rejected_nodes[node] = wrong
        elif wrong:
            self.refused[client] = wrong
        else:
            self.nodes[client] = node
            self.refused.pop(client, None)
            self.rejected_nodes.pop(node, None)

    def _checked(self, node: int, answer: Message, online: set[int]) -> tuple[ClientId | None, str]:
        """Return the partition that a node announces (None if it may not hold one), and what is wrong, or ""."""
        head, _ = unpacked(answer.content, f"node {node}", {})
        announced = head.get("card")
        client = announced.get("partition") if isinstance(announced, dict) else None
        if not isinstance(announced, dict) or not is_int(client) or client not in self.cards:
            wrong = f"node {node} announces the partition {client!r:.40}; this run has {partitions_text(self.cards)}"
            return None, wrong
        if self.keys is not None and not self._has_its_key(node, client, announced, head.get("signature")):
            return None, (
                f"node {node} claims partition {client} but does not prove possession of the key in network.node_keys; "
                "its site sets key='...' in the node's config to the matching private key"
            )
        holder = self.nodes.get(client)
        if holder is not None and holder != node and holder in online:
            self._claims[node] = client  # the holder may be its own previous process, until Flower notices
            return None, f"node {node} claims partition {client}, which node {holder} holds"
        if "error" in announced:
            return client, f"client {client}: {harmless(announced['error'])}"
        if found := mismatches(announced, self.cards[client]):
            return client, f"client {client}: {'; '.join(found)}"
        if self.cards[client].get("num_examples") is None:
            if self._began and client not in self.announced:
                return client, f"client {client}: joined after the run had begun without its rows"
            self.announced.setdefault(client, examples(announced) or 0)
        return client, ""

    def _has_its_key(self, node: int, client: ClientId, announced: Card, given: Any) -> bool:
        from fedquilt.engine.flower.seal import is_signed

        public = (self.keys or {}).get(client)
        return public is not None and is_signed(public, given, announced, self._nonce, self.run, node)
