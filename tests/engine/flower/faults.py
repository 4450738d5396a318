"""A federation of real processes through every failure: killed node, cut-off node, killed server, killed SuperLink.

``python tests/engine/flower/faults.py`` plays 20 rounds over TLS with node authentication and says what it did and what
came of it; the tests play a short form. The end is compared, to the bit, with a run in one process in which the same
replies are missing: so no round is lost or counted twice, whatever happened on the way.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedquilt.config.load import load
from fedquilt.core.types import Failure
from fedquilt.engine.flower.local_config import CONNECTION
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.processes import marked, marked_as, patience
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.engine import Connect
from fedquilt.experiment.run import run
from fedquilt.record import Record, read_result, read_rounds
from fedquilt.report.caveats import notes
from fedquilt.report.runs import dropped, group_runs, read_run, resumed

RUN = """\
name = "faults"
seed = 3
threads = 1
rounds = {rounds}
quorum = 0.3
model = {{ name = "tiny:vit?layers=3&width=16&image=8&patch=4", task = "image-classification" }}
data = {{ source = "{source}", classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] }}
partition = {{ scheme = "sites", num_clients = {nodes} }}
clients = {{ budgets = [1, 2, 3] }}
adapter = {{ rank = 2, alpha = 4 }}
training = {{ steps = 2, batch_size = 8 }}
method = {{ name = "fed-hello", allocation = "rgd" }}
network = {{ timeout = 7200, grace = {grace:.0f}, wait = 7200 }}
"""

GRACE = 4.0
"""Seconds of an idle machine between the first of the nodes and the last, whose programs start at the same time."""

PATIENCE = 300.0
"""Seconds of an idle machine without any sign of life, after which a play has come to a standstill."""

Act = Callable[["Play"], None]


class Play:
    """A run of SuperNodes through the failures that are given by the round in whose middle they come."""

    def __init__(
        self, folder: Path, rounds: int, nodes: int, *, secure: bool, said: Callable[[str], None] = print
    ) -> None:
        self.folder, self.rounds, self.nodes, self.began = folder, rounds, nodes, time.monotonic()
        self.run_folder, self.file = folder / "runs" / "faults", folder / "faults.toml"
        self.trial = Trial(
            folder / "trial", nodes, secure=secure, node_config=lambda node: {"data": str(self.rows(node))}
        )
        self.command: subprocess.Popen[str] | None = None
        self.codes: list[int] = []
        self.killed: list[int] = []  # nodes
        self.away: dict[int, list[int]] = {}  # by node, the rounds that it certainly missed
        self.broken: list[int] = []  # the rounds before which the run was taken up again
        self._say = said
        folder.mkdir(parents=True, exist_ok=True)
        self.grace = patience(GRACE)
        self.file.write_text(self.text("node"))
        for site in range(nodes):
            draw = np.random.default_rng(site)
            images = draw.integers(0, 256, (40 + 8 * site, 8, 8)).astype(np.uint8)
            np.savez(self.rows(site), images=images, labels=draw.integers(0, 10, len(images)))

    def text(self, source: str) -> str:
        """The run file, with the rows of each client from this source."""
        return RUN.format(rounds=self.rounds, nodes=self.nodes, grace=self.grace, source=source)

    def rows(self, site: int) -> Path:
        """The data of one site, which only its node knows."""
        return self.folder / f"site-{site}.npz"

    def say(self, text: str) -> None:
        self._say(f"{time.monotonic() - self.began:6.1f} s, {self.finished} rounds done: {text}")

    @property
    def finished(self) -> int:
        return len(read_rounds(self.run_folder)) if (self.run_folder / "rounds.jsonl").exists() else 0

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until ``true()``, however long that takes, as long as there are signs of life."""
        sign, last, looked = self.life(), time.monotonic(), time.monotonic()
        while not true():
            if self.command is not None and self.command.poll() not in (None, 0) and "ends" not in what:
                raise AssertionError(f"the run ended while waiting until {what}: {self.heard}")
            now = time.monotonic()
            if now - looked > 5:  # looking costs something, too
                looked = now
                if (new := self.life()) != sign:
                    sign, last = new, now
                still = now - last
                assert still < patience(PATIENCE), f"{still:.0f} s without a sign of life until {what}; {self.heard}"
            time.sleep(0.1)

    def life(self) -> tuple[object, ...]:
        """What changes as long as anybody works: rounds, what the processes have written, and which there are."""
        logs = [self.folder / "command.log", *(self.folder / "trial" / "logs").glob("*")]
        written = sum(log.stat().st_size for log in logs if log.exists())
        return self.finished, written, tuple(sorted(marked(str(self.trial.folder))))

    @property
    def heard(self) -> str:
        return (self.folder / "command.log").read_text()[-3000:]

    def start(self, *words: str) -> None:
        """The command of an operator, which follows the run to its end."""
        line = [sys.executable, "-c", "from fedquilt.cli import main; main()", "run", *words]
        line += ["--engine", "flower", "--superlink", CONNECTION]
        around = {**os.environ, "FLWR_HOME": str(self.trial.home), "PYTHONUNBUFFERED": "1"}
        with open(self.folder / "command.log", "a") as log:
            self.command = subprocess.Popen(line, stdout=log, stderr=log, env=around, cwd=self.folder, text=True)

    def ended(self) -> int:
        """The exit code of the operator's command, which is waited for."""
        assert self.command is not None
        self.until(lambda: self.command.poll() is not None, "the command ends")
        self.codes.append(self.command.returncode)
        return self.command.returncode

    def play(self, faults: Mapping[int, Act]) -> None:
        """Run to the end; in the middle of each round that ``faults`` names, its failure comes."""
        with self.trial:
            self.say(f"{self.nodes} nodes online after {self.trial.ready():.0f} s")
            self.start(str(self.file), "--folder", str(self.run_folder))
            self.until((self.run_folder / "config.json").exists, "all clients have said who they are")
            self.say("everyone has joined")
            for number, act in sorted(faults.items()):
                self.until(lambda number=number: self.finished >= number, f"round {number + 1} begins")
                act(self)
            assert self.ended() == 0, self.heard
            self.say("finished")

    def working(self, node: int) -> None:
        """Wait until a node is in the middle of its work."""
        mark = f"{self.trial.folder}/node-{node}"
        self.until(lambda: bool(marked_as(mark, "flwr-clientapp")), f"node {node} works")

    def lost(self) -> None:
        """Wait until the operator's command has seen that the run is lost; it must say so."""
        code = self.ended()
        assert code == 1, self.heard
        self.say(f"the command ended with {code}: {self.heard.strip().splitlines()[-1]}")

    def resume(self) -> None:
        self.broken.append(self.finished)
        self.start("--resume", str(self.run_folder))


def kill_node(node: int) -> Act:
    """Kill -9 in the middle of its work, and start it again."""

    def act(play: Play) -> None:
        play.working(node)
        play.trial.kill_node(node)
        play.killed.append(node)
        play.say(f"node {node} killed while it worked")
        play.trial.start_node(node)

    return act


def cut_off(node: int, rounds: int) -> Act:
    """Stop a node with all it has started, so that nothing of it is heard for some rounds; then let it go on."""

    def act(play: Play) -> None:
        play.working(node)
        began, mark = play.finished, f"{play.trial.folder}/node-{node}"
        stopped = marked(mark)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        play.say(f"node {node} cut off")
        try:
            play.until(lambda: play.finished >= began + rounds, f"{rounds} rounds pass without node {node}")
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)
        play.away[node] = [*range(began, began + rounds)]
        play.say(f"node {node} back")

    return act


def kill_server(*, wait: bool) -> Act:
    """Kill -9 the process of the ServerApp in the middle of a round, and take the run up again.

    With ``wait`` when Flower has noticed and the operator's command has ended, which takes a minute; else at once.
    """

    def act(play: Play) -> None:
        play.working(0)
        for process in play.trial.server_processes():
            os.kill(process, signal.SIGKILL)
        play.say("server process killed")
        if wait:
            play.lost()
        else:
            play.command.kill()
        play.resume()

    return act


def kill_superlink(play: Play) -> None:
    """Kill -9 the SuperLink and its ServerApp in the middle of a round, start it again, and take the run up again."""
    play.working(0)
    play.trial.kill_superlink()
    play.say("SuperLink killed")
    play.lost()
    play.trial.start_superlink()
    play.trial.ready()
    play.resume()


LONG = {2: kill_node(1), 8: cut_off(2, 2), 12: kill_server(wait=True), 15: kill_superlink}
SHORT = {0: kill_node(1), 1: cut_off(2, 1), 2: kill_server(wait=False)}
"""Another node is cut off than was killed: the killed one is asked again only when the server takes it for lost."""


def replayed(play: Play) -> Path:
    """The same run in one process, in which the same replies are missing; gives its folder."""
    missing = {
        (line["round"], int(client))
        for line in read_rounds(play.run_folder)
        for exchange in line["exchanges"]
        for client in exchange["dropped"]
    }

    class Missing(LocalEngine):
        def send(self, exchange, orders):
            here = {id: order for id, order in orders.items() if (order.round, id) not in missing}
            replies = {reply.client: reply for reply in super().send(exchange, here)}
            for client in sorted(orders):
                yield replies.get(client, Failure(client, "missing in the other run, too"))

    def make(experiment, key, memories, progress):
        return Missing(experiment.clients, memories)

    folder = play.folder / "replayed"
    here = play.folder / "here.toml"
    here.write_text(play.text("./site-{client}.npz"))
    return run(load(here)[0], folder, connect=Connect("replayed", make))


def check(play: Play) -> list[str]:
    """What the run says happened; an AssertionError if a round was lost or counted twice, or the bits differ."""
    lines = read_rounds(play.run_folder)
    assert read_result(play.run_folder) is not None
    assert [line["round"] for line in lines] == list(range(play.rounds))
    for line in lines:
        (exchange,) = line["exchanges"]
        assert len(exchange["clients"]) + len(exchange["dropped"]) == play.nodes
        assert line["messages"].get("train.fit", 0) <= play.nodes
    gone = {(one["round"], one["client"]) for one in dropped(read_run(play.run_folder))}
    assert {client for _, client in gone} >= set(play.killed)
    assert gone >= {(number, node) for node, numbers in play.away.items() for number in numbers}
    assert resumed(read_run(play.run_folder)) == play.broken
    ours, theirs = (Record.open(path).load_checkpoint()[1]["params"] for path in (play.run_folder, replayed(play)))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    return notes(group_runs([read_run(play.run_folder)]))


def main() -> None:
    """Play it and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form: three nodes and rounds, no TLS")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        play = Play(Path(folder), *((3, 3) if words.short else (20, 4)), secure=not words.short)
        play.play(SHORT if words.short else LONG)
        print(*check(play), f"exit codes of the commands: {play.codes}", sep="\n")


if __name__ == "__main__":
    main()
