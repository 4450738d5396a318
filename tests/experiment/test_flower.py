"""The same run file embedded and on Flower: same bits, same record, resumed where it stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from in_process_grid import InProcessGrid

from fedquilt.core.errors import ConfigError, RoundError, RunError
from fedquilt.core.shell import install_extra
from fedquilt.engine.flower.client import client_app
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.experiment import flower, flower_site
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, read_environment, read_result, read_rounds
from fedquilt.report.runs import read_run
from fedquilt.report.table import summary


def in_process(grid, settings, **network):
    """The engine of a run over a grid of this process, which does not wait long."""
    quick = settings.network.model_copy(update={"timeout": 5.0, "wait": 5.0, **network})
    return flower.over(grid, settings.model_copy(update={"network": quick}), name="in-process", poll=0.05)


def grid_of(config, folder: Path) -> InProcessGrid:
    return InProcessGrid(client_app(flower_site.joined(config), folder / "sites"), config.partition.num_clients)


def comparable(line: dict) -> dict:
    """A line of the record without times and evaluation, and without what the clients scored for themselves."""
    line = {k: v for k, v in deepcopy(line).items() if k not in ("seconds", "evaluation_seconds", "messages")}
    line["evaluation"] = line["evaluation"] and line["evaluation"]["global"]
    for exchange in line["exchanges"]:
        for client in exchange["clients"].values():
            client["metrics"] = {k: v for k, v in client["metrics"].items() if not k.startswith("received_")}
    return line


def test_a_run_file_ends_in_the_same_bits_and_record_as_embedded(config, tmp_path, finished, fingerprint):
    settings, folder = config(), tmp_path / "flower"
    grid = grid_of(settings, folder)
    assert run(settings, folder, connect=in_process(grid, settings)) == folder
    assert fingerprint(folder) == fingerprint(finished)
    assert read_environment(folder)["engine"] == "in-process"
    left, right = read_rounds(folder), read_rounds(finished)
    assert [comparable(line) for line in left] == [comparable(line) for line in right]
    assert len(grid.calls) == 6 + 3 * 4 + 6  # every client scores the final model
    assert [line["messages"] for line in left] == [{"query.hello": 6, "train.fit": 4}] + 2 * [
        {"query.hello": 0, "train.fit": 4}
    ]
    for line in left:
        for client in line["exchanges"][0]["clients"].values():
            assert client["metrics"]["received_examples"] > 0


@pytest.mark.parametrize("changes", [("network.dtype=int8", "head.policy=local"), ("network.dtype=bfloat16",)])
def test_fewer_bits_on_the_wire_end_in_the_same_bits_too(config, tmp_path, fingerprint, changes):
    settings, folder = config("rounds=2", "method.name=fedra", *changes), tmp_path / "flower"
    embedded = run(settings, tmp_path / "embedded")
    run(settings, folder, connect=in_process(grid_of(settings, folder), settings))
    left, right = (Record.open(one).load_checkpoint()[1]["params"] for one in (folder, embedded))
    assert left.keys() == right.keys()
    assert all(left[name].equal(tensor) for name, tensor in right.items())
    assert [comparable(line) for line in read_rounds(folder)] == [comparable(line) for line in read_rounds(embedded)]
    for line in read_rounds(folder):
        assert not line["exchanges"][0]["dropped"]
    assert all(memory["wire"]["fit"] for memory in sites(folder))


def test_private_parts_stay_with_the_clients(config, tmp_path):
    settings = config("rounds=2", "method.name=local-only")
    embedded, folder = run(settings, tmp_path / "embedded"), tmp_path / "flower"
    run(settings, folder, connect=in_process(grid_of(settings, folder), settings))
    _, _, memories = Record.open(embedded).load_checkpoint()
    _, _, none = Record.open(folder).load_checkpoint()
    key = read_environment(folder)["run_key"]
    assert none == {}
    assert len(memories) >= 4
    for client, memory in memories.items():
        own = MemoryStore(folder / "sites" / key / f"client-{client:03d}").newest
        assert own["params"].keys() == memory["params"].keys()
        assert all(own["params"][name].equal(tensor) for name, tensor in memory["params"].items())


def test_a_server_that_dies_in_a_round_goes_on_to_the_same_bits(config, tmp_path):
    settings = config("head.policy=local")
    whole = tmp_path / "whole"
    run(settings, whole, connect=in_process(grid_of(settings, whole), settings))
    folder = tmp_path / "stopped"
    grid = grid_of(settings, folder)
    counted = []

    def dying(order, reply):
        counted.append(order)
        if len(counted) == 6 + 4 + 3:  # in round 1, when some clients have already trained and kept their memory
            raise KeyboardInterrupt
        return reply

    grid.meddle = dying
    with pytest.raises(KeyboardInterrupt):
        run(settings, folder, connect=in_process(grid, settings))
    assert len(read_rounds(folder)) == 1
    resume(folder, connect=in_process(grid_of(settings, folder), settings))
    assert read_result(folder)["status"] == "finished"
    left, right = Record.open(folder).load_checkpoint(), Record.open(whole).load_checkpoint()
    assert all(left[1]["params"][name].equal(tensor) for name, tensor in right[1]["params"].items())
    for one, other in zip(sites(folder), sites(whole), strict=True):
        assert all(one["params"][name].equal(tensor) for name, tensor in other["params"].items())


def sites(folder: Path) -> list[dict]:
    (run_folder,) = (folder / "sites").iterdir()
    found = [MemoryStore(client).newest for client in sorted(run_folder.iterdir())]
    assert len(found) >= 4
    return found


def test_a_run_goes_on_only_on_the_engine_it_began_with(config, tmp_path):
    folder = tmp_path / "embedded"
    run(config("rounds=1"), folder)
    (folder / "result.json").unlink()
    with pytest.raises(RunError, match="began with --engine embedded; go on with the same one, not in-process"):
        resume(folder, connect=in_process(None, config()))


def test_a_client_with_another_run_file_is_refused_before_a_folder_is_made(config, tmp_path):
    grid = grid_of(config("training.learning_rate=0.5", "method.name=fedra"), tmp_path)
    with pytest.raises(ConfigError) as refused:
        run(config(), tmp_path / "run", connect=in_process(grid, config()))
    assert len(refused.value.problems) == 6
    assert "refused before training: client 0: its run file differs in method, training" in refused.value.problems
    assert not (tmp_path / "run").exists()


def test_a_client_that_would_send_other_types_is_refused_by_name(config, tmp_path):
    grid = grid_of(config("network.dtype=int8", "network.timeout=9"), tmp_path)
    with pytest.raises(ConfigError) as refused:
        run(config(), tmp_path / "run", connect=in_process(grid, config()))
    assert "refused before training: client 0: its run file differs in network.dtype" in refused.value.problems


def test_another_model_and_more_rows_are_told_by_name(config, tmp_path):
    changes = ("model.name=tiny:vit?layers=3&width=8&image=8&patch=4", "data.proxy=40")
    with pytest.raises(ConfigError) as refused:
        run(config(), tmp_path / "run", connect=in_process(grid_of(config(*changes), tmp_path), config()))
    text = str(refused.value)
    assert "its architecture is 'vit-3x8', and this run needs 'vit-3x16'" in text
    assert "its base model's weights is" in text
    assert "its adapter names and shapes is" in text
    assert "its number of training examples is" in text


def test_a_partition_that_nobody_dealt_is_told_to_its_node(config):
    with pytest.raises(ConfigError, match=r"partition-id = 6: partition.num_clients = 6, so the partitions are 0 to 5"):
        flower_site.joined(config())(6, {})


def test_too_few_replies_stop_the_run_and_say_where_it_stands(config, tmp_path):
    settings = config("quorum=1.0")
    grid = grid_of(settings, tmp_path)
    grid.meddle = lambda order, reply: None if "train" in order.metadata.message_type else reply
    with pytest.raises(RoundError, match=r"round 1, exchange 'fit': 0 of 4 .*no reply within 0.2 s.*no earlier round"):
        run(settings, tmp_path / "run", connect=in_process(grid, settings, timeout=0.2))


def test_scores_of_what_is_received_change_no_training(config, tmp_path, finished, fingerprint):
    folder = run(config('evaluation.clients="received"'), tmp_path / "received")
    assert fingerprint(folder) == fingerprint(finished)
    for line, other in zip(read_rounds(folder), read_rounds(finished), strict=True):
        assert comparable(line) == comparable(other)
        assert line["evaluation"]["clients"] == {}
        for client in line["exchanges"][0]["clients"].values():
            assert 0 <= client["metrics"]["received_accuracy"] <= 1


def test_what_clients_score_in_the_closing_exchange_is_what_one_process_scores(config, tmp_path, finished):
    settings, folder = config(), tmp_path / "flower"
    run(settings, folder, connect=in_process(grid_of(settings, folder), settings))
    ours, theirs = read_result(folder)["final"], read_result(finished)["final"]
    assert theirs == read_rounds(finished)[-1]["evaluation"]
    assert ours["clients"].keys() == theirs["clients"].keys()
    for client, scores in ours["clients"].items():  # one process evaluates clients together, whose sums round otherwise
        assert scores == pytest.approx(theirs["clients"][client], rel=1e-6)
        assert scores["accuracy"] == theirs["clients"][client]["accuracy"]
    assert {**ours, "clients": {}} == {**theirs, "clients": {}}
    assert len(ours["clients"]) == 6
    closing = read_result(folder)["closing"]
    assert closing["messages"] == {"query.hello": 0, "train.fit": 0, "train.score": 6}
    assert closing["exchanges"][0]["dropped"] == {}
    said = [summary(read_run(one))["final_personalised"] for one in (folder, finished)]
    assert said[0] == pytest.approx(said[1], rel=1e-6)


def test_drawn_blocks_alone_are_nobodys_model_and_are_not_scored(config, tmp_path):
    folder = run(config('evaluation.clients="received"', "method.name=fedra", "rounds=2"), tmp_path / "parts")
    for line in read_rounds(folder):
        for client in line["exchanges"][0]["clients"].values():
            assert not any(name.startswith("received_") for name in client["metrics"])
    assert len(read_result(folder)["final"]["clients"]) == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--engine", "flowersim"],
            "no such engine (did you mean 'flower-sim'?); allowed: embedded, flower-sim, flower",
        ),
        (["--engine", "flower"], "--engine flower and --superlink NAME go together"),
        (["--superlink", "trial"], "--engine flower and --superlink NAME go together"),
    ],
)
def test_the_command_names_a_wrong_option(command, words, text):
    said = command("run", "tiny.toml", *words)
    assert said.code == 1
    assert text in said.err


def test_without_flower_the_engine_says_what_to_install(command, monkeypatch):
    monkeypatch.setattr("fedquilt.experiment.flower.find_spec", lambda name: None)
    said = command("run", "tiny.toml", "--engine", "flower-sim")
    assert said.code == 1
    assert f"--engine flower-sim: needs flwr and ray; install it with: {install_extra('flower')}" in said.err


def test_telemetry_is_off_unless_it_was_turned_on(monkeypatch):
    from fedquilt.engine.flower.compat import QUIET, quiet

    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    quiet()
    assert {name: os.environ[name] for name in QUIET} == {**QUIET, "FLWR_TELEMETRY_ENABLED": "1"}
    assert set(QUIET) == {"FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "RAY_USAGE_STATS_ENABLED"}


def test_the_two_apps_of_a_run_file_run_it_and_go_on_with_it(tiny, tmp_path, finished, fingerprint):
    from flwr.app import Context, RecordDict

    grid = InProcessGrid(flower.site_app(tiny), 6)
    for context in grid.contexts.values():
        context.node_config["memories"] = str(tmp_path / "sites")
    server, context = flower.server_app(tiny), Context(1, 1, {}, RecordDict(), {})
    stopped = []

    def dying(order, reply):
        stopped.append(order)
        if len(stopped) == 6 + 4 + 2:
            raise KeyboardInterrupt
        return reply

    grid.meddle = dying
    with pytest.raises(KeyboardInterrupt):
        server(grid, context)
    folder = Path("runs") / "tiny"
    assert len(read_rounds(folder)) == 1
    server(grid, context)
    assert fingerprint(folder) == fingerprint(finished)
    assert read_environment(folder)["engine"] == "flower"


@pytest.mark.slow
def test_flowers_simulation_ends_in_the_same_bits_and_a_failure_is_loud(config, tmp_path, finished, fingerprint):
    """Through the command, in processes of their own, as a user runs it."""
    pytest.importorskip("ray")
    tiny, folder = Path("tiny.toml").absolute(), tmp_path / "sim"

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", "from fedquilt.cli import main; main()", "run", *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    done = command(str(tiny), "--folder", str(folder), "--engine", "flower-sim")
    assert done.returncode == 0, done.stderr
    assert fingerprint(folder) == fingerprint(finished)
    assert [comparable(line) for line in read_rounds(folder)] == [comparable(line) for line in read_rounds(finished)]
    failed = command(
        str(tiny), "quorum=1.0", "training.learning_rate=1e30", "training.optimizer=sgd", "--folder", "bad",
        "--engine", "flower-sim",
    )  # fmt: skip
    assert failed.returncode == 1
    assert "error: round" in failed.stderr
    assert "client" in failed.stderr
