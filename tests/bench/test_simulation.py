"""The benchmark of a round notices arms that do not make the same steps, and measures all of them on one task."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "bench" / "simulation.py"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = spec_from_file_location("bench_simulation", FILE)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_simulation", module)
    spec.loader.exec_module(module)
    small = {"name": "tiny:vit?layers=2&width=8&image=8&patch=4", "task": "image-classification"}
    keys = {"model": small, "data": {"limit": 120}, "training": {"steps": 2}, "clients": {"budgets": [2]}}
    monkeypatch.setitem(module.SETTINGS, "equal", keys)
    return module


def test_all_arms_make_the_same_steps(bench, tmp_path):
    experiment = bench.experiment_of("equal", 4, tmp_path)
    result = bench.measured(experiment, "equal", 1, only_ours=False)
    assert {"in turn", "side by side", "auto", "bare loop", "released"} <= result["ratios"].keys()
    assert all(times["cpu"]["median"] > 0 for times in result["times"].values())
    assert result["ratios"]["bare loop"]["cpu"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert "| side by side |" in bench.table("equal", 4, result)


def test_an_arm_that_takes_other_steps_is_noticed(bench, tmp_path, monkeypatch):
    experiment = bench.experiment_of("equal", 4, tmp_path)
    monkeypatch.setattr(bench, "bare", lambda experiment: lambda orders: dict.fromkeys(orders, 0.0))
    with pytest.raises(SystemExit, match="do not make the same steps"):
        bench.measured(experiment, "equal", 1, only_ours=False)
