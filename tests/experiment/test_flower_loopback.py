"""A real SuperLink and three SuperNodes over loopback TLS with node authentication: every method ends in the bits of
embedded, also when the server process dies in between."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from parties import FILE as PARTIES
from schemes import FILE

pytest.importorskip("flwr")

from fedquilt.adapters.registry import KINDS
from fedquilt.config.load import load
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.processes import patience, tail
from fedquilt.experiment.flower_app import write_app
from fedquilt.experiment.run import run
from fedquilt.methods import METHODS, traits_of
from fedquilt.record import Record, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes

pytestmark = pytest.mark.slow

BYTES = ("bytes_down", "bytes_up")
"""What a record tells of a client's traffic in an exchange."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Three SuperNodes that are online; all tests of this file use them."""
    with Trial(tmp_path_factory.mktemp("federation")) as made:
        made.ready()
        assert [node["status"] for node in made.nodes()] == ["online"] * 3
        yield made


def kind_for(method: str) -> str:
    """The kind of adapter of the method's runs."""
    return {"mixture": "mixture", "anchored": "anchored"}.get(traits_of(method).needs, "lora")


def app_in(folder: Path, tiny: Path, method: str, rounds: int, head: str) -> Path:
    """A Flower app whose run file is the tiny federation's, with three clients and this method; its run goes beside."""
    text = tiny.read_text()
    for old, new in (
        ("num_clients = 6", "num_clients = 3"),
        ("cohort = 4", "cohort = 3"),
        ("classes_per_client = 2", "classes_per_client = 4"),
        ("rounds = 3", f"rounds = {rounds}"),
        (
            'name = "fed-hello"\nallocation = "rgd"',
            f'name = "{method}"' + '\nallocation = "rgd"' * (method == "fed-hello"),
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    kind = kind_for(method)
    blocks = "num_blocks = 3\n" * (kind == "anchored")
    text = text.replace("[adapter]\n", f'[adapter]\nkind = "{kind}"\n{blocks}')
    top = f'name = "tiny"\noutput = "{folder / "runs"}"\n'
    return write_app(folder / "app", f'{top}{text}\n[head]\npolicy = "{head}"\n[network]\ntimeout = 120\n').parent


UNLIKE = """
name = "unlike"
output = "{runs}"
seed = 3
rounds = 2
device = "cpu"
threads = 1
model = {{ name = "tiny:vit?layers=3&width=16&image=8&patch=4", task = "image-classification" }}
data = {{ source = "sklearn:digits", limit = 120 }}
partition = {{ scheme = "iid", num_clients = 3 }}
adapter = {{ kind = "{kind}", rank = 2 }}
training = {{ steps = 4, batch_size = 8, learning_rate = 0.01 }}
method = {{ name = "{method}" }}
network = {{ timeout = 120 }}

[[groups]]
label = "small"
budget = 3

[[groups]]
label = "wide"
budget = 4
model = {{ name = "tiny:vit?layers=4&width=24&image=8&patch=4", task = "image-classification" }}

[[groups]]
label = "writes"
budget = 2
model = {{ name = "tiny:llama?layers=2&width=16", task = "causal-lm", max_length = 16 }}
data = {{ source = "{words}", target = "answer" }}
"""


TAUGHT = """
name = "taught"
output = "{runs}"
seed = 3
method = {{ name = "{method}" }}
network = {{ timeout = 120 }}
"""
"""What stands before ``schemes.FILE``: a server with a model of its own, and three clients of two architectures."""


def submit(trial: Trial, app: Path) -> str:
    """The number of the run that Flower has started."""
    return re.search(r"started run (\d+)", trial.flwr("run", str(app), "trial").stdout).group(1)


def until(true, seconds: float, trial: Trial, number: str | None) -> None:
    """Wait for a run; one that has failed is not waited for, if its number is given."""
    began, looked = time.monotonic(), time.monotonic()
    while not true():
        assert time.monotonic() - began < patience(seconds), tail(trial.process("superlink"), 40)
        if number is not None and time.monotonic() - looked > 10:
            assert "finished:failed" not in status(trial, number), trial.flwr("log", number, "trial", "--show").stdout
            looked = time.monotonic()
        time.sleep(0.5)


def same_as_embedded(app: Path, folder: Path) -> None:
    """The run over the network left what the same run file leaves embedded: tensors, losses, everyone there."""
    settings = load(app / "run.toml")[0]
    whole = run(settings, app.parent / "embedded")
    ours, theirs = (tree_to_bytes(Record.open(path).load_checkpoint()[1]) for path in (folder, whole))
    assert ours == theirs
    lines, others = read_rounds(folder), read_rounds(whole)
    assert [line["round"] for line in lines] == list(range(settings.rounds))
    for line, other in zip(lines, others, strict=True):
        for exchange, embedded in zip(line["exchanges"], other["exchanges"], strict=True):
            assert not exchange["dropped"]
            assert exchange["clients"].keys() == embedded["clients"].keys()
            for client, moved in exchange["clients"].items():
                # what stays with the clients shows in their losses: each must go on with its own
                assert moved["metrics"].get("loss") == embedded["clients"][client]["metrics"].get("loss")
                assert [moved[way] for way in BYTES] == [embedded["clients"][client][way] for way in BYTES]


ALONE = [name for name in METHODS if not traits_of(name).needs_server and not traits_of(name).vertical]
"""Methods whose server needs no model of its own, and whose clients have the same columns."""


@pytest.mark.parametrize("method", ALONE)
def test_every_method_ends_in_the_same_bits_as_embedded(trial, tiny, tmp_path, method):
    app, folder = app_in(tmp_path, tiny, method, 2, "aggregate"), tmp_path / "runs" / "tiny"
    until((folder / "result.json").exists, 240, trial, submit(trial, app))
    same_as_embedded(app, folder)
    seconds = [line["seconds"] for line in read_rounds(folder)]
    print(f"{method}: rounds of {', '.join(f'{one:.1f}' for one in seconds)} s over TLS")


ACROSS = [name for name in ALONE if traits_of(name).across and not KINDS[kind_for(name)].needs_public]
"""Those that take models of unlike tasks, which have no public inputs in common."""


@pytest.mark.parametrize("method", sorted({"fedit", *ACROSS}))
def test_clients_of_unlike_models_end_in_the_same_bits_as_embedded(trial, tmp_path, method):
    words = tmp_path / "words.tsv"
    rows = [f"thing {row % 5} is\t{'good' if row % 2 else 'bad'}" for row in range(40)]
    words.write_text("\n".join(["text\tanswer", *rows]) + "\n", encoding="utf-8")
    text = UNLIKE.format(runs=tmp_path / "runs", method=method, kind=kind_for(method), words=words)
    app, folder = write_app(tmp_path / "app", text).parent, tmp_path / "runs" / "unlike"
    until((folder / "result.json").exists, 240, trial, submit(trial, app))
    same_as_embedded(app, folder)


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed-inside-an-exchange"])
@pytest.mark.parametrize("method", [name for name in METHODS if traits_of(name).needs_server])
def test_a_server_that_owns_a_model_teaches_and_learns_in_the_same_bits(trial, tmp_path, method, killed):
    app = write_app(tmp_path / "app", TAUGHT.format(runs=tmp_path / "runs", method=method) + FILE).parent
    folder = tmp_path / "runs" / "taught"
    number = submit(trial, app)
    if killed:  # a round has at least one exchange, and the next one begins when a round is in the record
        until(lambda: folder.exists() and len(read_rounds(folder)) == 1, 240, trial, number)
        kill_server(trial)
        assert len(read_rounds(folder)) == 1
        number = submit(trial, app)
    until((folder / "result.json").exists, 300, trial, number)
    same_as_embedded(app, folder)


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed-inside-an-exchange"])
@pytest.mark.parametrize("method", [name for name in METHODS if traits_of(name).vertical])
def test_parties_with_other_columns_end_in_the_same_bits_as_embedded(trial, tmp_path, method, killed):
    top = f'name = "parted"\noutput = "{tmp_path / "runs"}"\nseed = 3\n'
    beside = f'method = {{ name = "{method}" }}\nnetwork = {{ timeout = 120 }}\n'
    app = write_app(tmp_path / "app", top + beside + PARTIES).parent
    folder = tmp_path / "runs" / "parted"
    number = submit(trial, app)
    if killed:
        until(lambda: folder.exists() and len(read_rounds(folder)) == 1, 240, trial, number)
        kill_server(trial)
        number = submit(trial, app)
    until((folder / "result.json").exists, 300, trial, number)
    same_as_embedded(app, folder)


def test_a_party_that_is_killed_and_comes_back_ends_in_the_same_bits(trial, tmp_path):
    """The run needs every party, so that a round without the killed one is not finished, and is run again."""
    top = f'name = "parted"\noutput = "{tmp_path / "runs"}"\nseed = 3\nquorum = 1.0\n'
    beside = 'method = { name = "proto-evfl" }\nnetwork = { timeout = 120 }\n'
    app = write_app(tmp_path / "app", top + beside + PARTIES).parent
    folder = tmp_path / "runs" / "parted"
    number = submit(trial, app)
    until(lambda: folder.exists() and len(read_rounds(folder)) == 1, 240, trial, number)
    trial.kill_node(1)
    assert len(read_rounds(folder)) == 1
    began = time.monotonic()
    trial.start_node(1)
    trial.ready([1])
    print(f"the killed party is back after {time.monotonic() - began:.0f} s")
    finished = folder / "result.json"
    until(lambda: finished.exists() or "finished" in status(trial, number), 300, trial, None)
    if not finished.exists():
        number = submit(trial, app)
    until(finished.exists, 300, trial, number)
    same_as_embedded(app, folder)


def status(trial: Trial, number: str) -> str:
    """What Flower says of a run."""
    return trial.flwr("list", "trial", "--run-id", number, "--format", "json").stdout


def kill_server(trial: Trial) -> None:
    killed = trial.server_processes()
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the server's process in /proc")
def test_a_killed_server_process_goes_on_to_the_same_bits(trial, tiny, tmp_path):
    app, folder = app_in(tmp_path, tiny, "fed-hello", 3, "local"), tmp_path / "runs" / "tiny"
    until(lambda: folder.exists() and len(read_rounds(folder)) == 1, 240, trial, submit(trial, app))
    kill_server(trial)
    until((folder / "result.json").exists, 300, trial, submit(trial, app))
    same_as_embedded(app, folder)
    assert all(len(line["exchanges"][0]["clients"]) == 3 for line in read_rounds(folder))
