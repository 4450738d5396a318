"""The benchmark of the low-rank kernel measures two ways to one result, and says so when they are not."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "bench" / "lowrank.py"


@pytest.fixture
def bench():
    spec = spec_from_file_location("bench_lowrank", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_ways_end_in_one_matrix(bench):
    clients = bench.clients_of(96)
    assert sum(client.A.shape[0] for client in clients) == 160
    fast, slow = bench.ours(clients), bench.by_dense_svd(clients)
    assert fast.B.shape == slow.B.shape == (96, 16)
    torch.testing.assert_close(fast.B @ fast.A, slow.B @ slow.A, rtol=1e-4, atol=1e-5)


def test_what_is_told_adds_up(bench):
    found = bench.compared(64, repeats=2, dense_repeats=3)
    assert found["runs"] == {"ours": 6, "dense": 3}
    assert 0 < found["relative_distance"] < bench.AGREE
    assert 0 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert min(found["seconds"].values()) > 0


def test_ways_that_differ_give_no_ratio(bench, monkeypatch):
    right = bench.ours
    monkeypatch.setattr(bench, "ours", lambda clients: right(clients[:-1]))
    with pytest.raises(SystemExit, match="d = 64: the two ways differ by"):
        bench.compared(64, repeats=1, dense_repeats=1)


def test_the_table_shows_a_missed_target_and_the_status_tells(bench, monkeypatch, capsys):
    def measured(size, repeats, dense_repeats):
        ratio = {768: 9.0, 4096: 60.0}.get(size, 2.0)
        return {
            "seconds": {"ours": 1.0, "dense": ratio},
            "ratio": {"median": ratio, "min": ratio, "max": ratio},
            "relative_distance": 1e-6,
            "runs": {"ours": 1, "dense": 1},
        }

    threads = torch.get_num_threads()
    monkeypatch.setattr(bench, "compared", measured)
    for sizes, status, missed in (((768, 4096), 1, ["768"]), ((256, 4096), 0, [])):
        monkeypatch.setattr(sys, "argv", [str(FILE), "--sizes", *map(str, sizes), "--threads", str(threads)])
        assert bench.main() == status
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if "MISSED" in line] == missed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json"])
    assert bench.main() == 0
    assert json.loads(capsys.readouterr().out)["targets_met"] is True
