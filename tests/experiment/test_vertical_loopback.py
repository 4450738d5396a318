"""Parties with files of their own on a real SuperLink: runs and queries have the bits of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from parties import new_customers, of_files, write_files

pytest.importorskip("flwr")

from fedquilt.engine.flower.local_federation import Trial
from fedquilt.experiment import run
from fedquilt.experiment.flower_app import ask, deploy
from fedquilt.experiment.vertical_predict import predicted_together
from fedquilt.record import Record, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes

pytestmark = pytest.mark.slow

PASSIVE = ("shop", "insurer")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of three parties, and those of new customers."""
    return new_customers(write_files(tmp_path_factory.mktemp("files")))


@pytest.fixture(scope="module")
def trial(made: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two SuperNodes that are online, each with its party's file and its file of new customers."""

    def of_node(node: int) -> dict[str, str]:
        own = PASSIVE[node]
        return {"data": str(made / f"{own}.csv"), "query": str(made / f"new-{own}.csv")}

    with Trial(tmp_path_factory.mktemp("federation"), 2, node_config=of_node) as started:
        started.ready()
        yield started


@pytest.mark.parametrize("method", ["proto-evfl", "vfl-split", "vfl-cvt", "vfl-hssl", "vfl-few-shot"])
def test_a_run_and_a_query_have_the_bits_of_one_process(
    trial: Trial, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(trial.home))
    settings, folder = of_files(made, method, network={"timeout": 120}), tmp_path / "flower"
    deploy(settings, folder, "trial", print)
    whole = run(settings, tmp_path / "embedded")
    ours, theirs = (tree_to_bytes(Record.open(path).load_checkpoint()[1]) for path in (folder, whole))
    assert ours == theirs
    for line, other in zip(read_rounds(folder), read_rounds(whole), strict=True):
        assert line["evaluation"] == other["evaluation"]
    given = [f"{name}={made / f'new-{name}.csv'}" for name in (*PASSIVE, "bank")]
    expected = [*predicted_together(whole, settings, given, (), "customer").lines()]
    assert ask(folder, [str(made / "new-bank.csv")], "trial", (), print) == expected
    less = [*predicted_together(whole, settings, given[1:], ("shop",), "customer").lines()]
    assert ask(folder, [f"bank={made / 'new-bank.csv'}"], "trial", ("shop",), print) == less != expected
