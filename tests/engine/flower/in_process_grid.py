"""A Grid whose nodes are in this process, and what a test needs around it.

Every message crosses Flower's own serialisation, so nothing is shared between the two sides. ``faults`` can be put on
the way of a message or a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Profile
from fedquilt.engine.flower.client import Site, client_app
from fedquilt.engine.flower.compat import identify
from fedquilt.engine.flower.handshake import card

RUN = "0123456789abcdef"
FIRST_NODE = 7001  # a node's number says nothing about its partition


def travelled(content: RecordDict) -> RecordDict:
    """The records after Flower's own serialisation and back."""
    parts = {key: value.deflate() for key, value in get_all_nested_objects(content).items()}
    return inflate_object_from_contents(content.object_id, parts)


class InProcessGrid(Grid):
    """Nodes ``7001, 7002, ...`` hold the partitions in falling order. ``calls`` lists (message type, partition)."""

    def __init__(
        self, app: ClientApp, num_nodes: int, meddle: Callable[[Message, Message], Message | None] | None = None
    ):
        identify(1)
        self._run, self.app, self.meddle = Run.create_empty(1), app, meddle
        self.contexts: dict[int, Context] = {}
        self._next = FIRST_NODE
        for partition in reversed(range(num_nodes)):
            self.add(partition)
        self.calls: list[tuple[str, int]] = []
        self._count, self._replies = 0, {}

    def add(self, partition: int) -> int:
        """A new node that holds a partition; gives its number."""
        node = self._next
        self._next += 1
        self.contexts[node] = Context(1, node, {"partition-id": partition}, RecordDict(), {})
        return node

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._count}"
            ids.append(message.metadata.message_id)
            reply = self._answer(message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
        return ids

    def _answer(self, message: Message) -> Message | None:
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "node is gone"), reply_to=message)
        self.calls.append((message.metadata.message_type, context.node_config["partition-id"]))
        arrived = Message(travelled(message.content), message.metadata.dst_node_id, message.metadata.message_type)
        arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
        try:
            reply = self.app(arrived, context)
        except Exception as error:  # as Flower does it
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=arrived)
        if self.meddle is not None:
            changed = self.meddle(arrived, reply)
            if changed is None:
                return None
            reply = changed
        if reply.has_content():
            reply = Message(travelled(reply.content), reply_to=arrived)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = [self._replies.pop(id) for id in message_ids if id in self._replies]
        return found[::-1]  # whoever is first to answer is not whoever was first asked

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl=None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        return [*self.contexts]


def cards_of(method: Method, profiles: Iterable[Profile]) -> dict[ClientId, dict[str, Any]]:
    names = tuple(exchange.name for exchange in method.exchanges)
    return {profile.id: card(profile, names) for profile in profiles}


def app_of(
    method: Method, profiles: Iterable[Profile], clients: Mapping[ClientId, Any], memories: Path, **more: Any
) -> ClientApp:
    """The ClientApp of a federation whose clients are at hand."""
    cards = cards_of(method, profiles)
    sites = {id: Site(id, client, method, cards[id]) for id, client in clients.items()}
    return client_app(lambda partition, node: sites[partition], memories, **more)
