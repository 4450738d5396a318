"""What runs of unlike clients have in common: words beside the run file, and an end before the end."""

import importlib
import shutil

import pytest

from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.experiment.progress import Progress
from fedquilt.experiment.run import run


@pytest.fixture
def words(tmp_path):
    """A file of labelled words, ``words.tsv``, in the test's folder."""
    lines = [f"{'good' if row % 2 else 'bad'} thing {row % 5}\t{'yes' if row % 2 else 'no'}" for row in range(48)]
    path = tmp_path / "words.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def stopped():
    """What watches a run and ends it, as Ctrl-C does, when its first round is done."""

    class Stopping(Progress):
        def round(self, line):
            raise KeyboardInterrupt

    return Stopping()


class Copying(Progress):
    """Copies a run's folder when so many of its rounds are done: what is left of one that is killed then."""

    def __init__(self, folder, copy, rounds=1):
        self.folder, self.copy, self.rounds = folder, copy, rounds

    def round(self, line):
        if line["round"] + 1 == self.rounds:
            shutil.copytree(self.folder, self.copy)


@pytest.fixture(scope="session")
def copying():
    """``copying(folder, copy, rounds)``: the class, for ``run`` into the folder; it trains nothing twice."""
    return Copying


@pytest.fixture
def recorded_run():
    """``recorded_run(config, folder)``: an embedded run's folder, and every client's orders and replies."""

    def of(config, folder):
        moved = []

        class Recording(LocalEngine):
            def send(self, exchange, orders):
                for reply in super().send(exchange, orders):
                    moved.append((orders[reply.client], reply))
                    yield reply

        def make(experiment, key, memories, progress):
            return Recording(experiment.clients, memories, run=key)

        return run(config, folder, connect=EMBEDDED._replace(make=make)), moved

    return of


@pytest.fixture
def bytes_alone(monkeypatch):
    """Plans leave activations out, of which a forward and backward pass over shapes takes most of a plan's time."""
    monkeypatch.setattr(importlib.import_module("fedquilt.experiment.needs"), "activation_bytes", lambda *_: 0)
