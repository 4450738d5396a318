"""One tiny federation that runs in a third of a second, the command in this process, and what both leave behind."""

import gc
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

# Laws are tried on this many examples, always the same ones: no change may fail by chance for a fault that it has not.
# HYPOTHESIS_PROFILE=thorough looks for new ones, four times as many.
settings.register_profile("brief", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "brief"))

# messages name programs as they are typed here: the tests' own is on the PATH, as in an activated environment
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
# one torch thread: the models are tiny, and two threads that wait for each other on a busy machine cost minutes
os.environ["OMP_NUM_THREADS"] = "1"
# the processes that tests start need not each compile all of the package anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TINY = """\
seed = 3
threads = 1
rounds = 3

[model]
name = "tiny:vit?layers=3&width=16&image=8&patch=4"
task = "image-classification"

[data]
source = "sklearn:digits"
limit = 240
proxy = 20

[partition]
scheme = "pathological"
num_clients = 6
classes_per_client = 2

[clients]
budgets = [1, 2, 3]
cohort = 4

[adapter]
rank = 2
alpha = 4

[training]
steps = 2
batch_size = 8

[evaluation]
last = 2

[method]
name = "fed-hello"
allocation = "rgd"
"""


LONGEST = "test_faults.py"
"""Processes that wait for one another, for two minutes: last, it would run beside nothing."""


def pytest_collectstart(collector):
    """Load the sections of a run file, which read what their keys mean from their sources.

    For each of them Python looks through all modules, which takes long once those of transformers are there.
    """
    import fedquilt.config.schema  # noqa: F401


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != LONGEST)


def pytest_collection_finish(session):
    """What imports have made stays to the end, so the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk():
    """What is written must outlive no power failure here, and waiting for the disk took up to a fifth of a test's time.

    The processes that tests start still wait; tests of what is synced, and in which order, watch the calls.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


class Said(NamedTuple):
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """``tiny.toml`` in an empty folder, which is the working folder for the test."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture
def config(tiny):
    """``config(key=value, ...)``: the tiny federation's Config, with changes as the command takes them."""
    from fedquilt.config.load import load

    return lambda *changes: load(tiny, changes)[0]


@pytest.fixture
def command(tiny, monkeypatch, capsys):
    """``command("run", "tiny.toml", ...)`` runs fedquilt's entry point in this process, errors and all."""
    from fedquilt.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fedquilt", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of one finished run of the tiny federation. Not to be changed."""
    from fedquilt.config.load import load
    from fedquilt.experiment.run import run

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY)
    return run(load(folder / "tiny.toml")[0], folder / "tiny")


@pytest.fixture(scope="session")
def fingerprint():
    """``fingerprint(run)``: the sha256 of every adapter file of a finished run, by its path in the run folder."""

    def of(run: Path) -> dict[str, str]:
        files = sorted((run / "adapters").rglob("*.safetensors"))
        assert files, f"{run} holds no adapters"
        return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    return of
