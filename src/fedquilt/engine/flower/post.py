"""Messages to nodes over Flower's Grid: sending, waiting for the answers, and counting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedquilt.core.errors import RoundError
from fedquilt.engine.flower.message_text import ABSENT, answer_of


class Post:
    """Sends messages and collects their answers; ``counts`` is the number of messages sent, by type.

    ``poll`` is the longest pause in seconds between two looks for answers. ``stop``, once set, ends all waiting.
    """

    def __init__(self, grid: Grid, poll: float, stop: threading.Event) -> None:
        self.grid, self.poll, self.stop = grid, poll, stop
        self.counts: dict[str, int] = {}

    def count(self, kind: str, sent: int) -> None:
        """Add to the number of messages sent."""
        self.counts[kind] = self.counts.get(kind, 0) + sent

    def ask(
        self,
        contents: Mapping[int, tuple[int, RecordDict]],
        kind: str,
        number: int,
        seconds: float,
        enough: int,
        grace: float | None,
    ) -> dict[int, Message | str]:
        """Send messages and wait for the answers.

        Parameters
        ----------
        contents
            The receiving node and the content of each message, by any key.
        kind, number
            The message type, and the number of the round.
        seconds
            The time limit.
        enough, grace
            Once ``enough`` have answered, the others have ``grace`` seconds left; None: the full time.

        Returns
        -------
        The answer to each message by its key: a message with content, or the reason why there is none.
        """
        sent = {
            key: Message(content, node, kind, group_id=str(number), ttl=seconds)
            for key, (node, content) in contents.items()
        }
        self.count(kind, len(sent))
        answers: dict[int, Message | str] = dict.fromkeys(sent, "Flower did not accept the message to its node")
        taken = {id for id in self.grid.push_messages([*sent.values()]) if id}
        waiting = {m.metadata.message_id: key for key, m in sent.items() if m.metadata.message_id in taken}
        answers.update(dict.fromkeys(waiting.values(), f"{ABSENT} within {seconds:g} s"))
        del sent, contents
        for message in self._pulled(waiting, seconds, enough, grace):
            # errors made by Flower itself do not carry the node's id; only the id of the message identifies it
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
        """Yield messages as they arrive, until all have or the time is up."""
        end, pause, good = time.monotonic() + seconds, 0.02, 0
        while waiting:
            got: Iterable[Message] = [*self.grid.pull_messages([*waiting])]
            yield from got
            good += sum(message.has_content() for message in got)
            if grace is not None and good >= enough:
                end, grace = min(end, time.monotonic() + grace), None
            if not waiting or time.monotonic() >= end:
                return
            self.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = self.poll if pause * 1.5 > self.poll else pause * 1.5

    def sleep(self, seconds: float) -> None:
        """Wait; RoundError if ``stop`` is set meanwhile."""
        if self.stop.wait(seconds):
            raise RoundError("Flower's engine ended while clients were at work")
