"""The benchmark compares like with like: it makes fedquilt's own steps, and says so when it does not."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "bench" / "overhead.py"


@pytest.fixture
def bench(monkeypatch):
    spec = spec_from_file_location("overhead", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    small = ["--clients", "2", "--steps", "2", "--batch-size", "4", "--rounds", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [str(FILE), *small])
    return module


@pytest.mark.parametrize("model", ["tiny:vit?layers=3", "tiny:bert?layers=3", "tiny:llama?layers=3"])
def test_the_loops_make_the_steps_that_fedquilt_makes(bench, monkeypatch, tmp_path, model):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--peft", "--model", model])
    options = bench.parsed()
    result = bench.overhead(options, bench.config_of(options, tmp_path), tmp_path)
    assert 0 <= result["largest_loss_difference"] < 1e-5
    assert list(result["ratios"]) == ["PyTorch loop", "PyTorch loop on PEFT"]
    for kinds in result["ratios"].values():
        assert all(0 < kind["min"] <= kind["median"] <= kind["max"] for kind in kinds.values())
    assert 0 < result["record_seconds"] < result["seconds_per_round"]["fedquilt"]["wall"]


def test_a_loop_that_makes_other_steps_gives_no_result(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--model", "tiny:vit?layers=3"])
    options = bench.parsed()
    config = bench.config_of(options, tmp_path)
    monkeypatch.setattr(
        bench, "loops", lambda _, experiment, with_peft: [_loop(bench, experiment, 10 * config.training.learning_rate)]
    )
    with pytest.raises(SystemExit, match="the loops do not make fedquilt's steps"):
        bench.overhead(options, config, tmp_path)


def _loop(bench, experiment, learning_rate):
    used = experiment.clients[0].bench
    return bench.Loop("PyTorch loop", used.model, used.parameters, learning_rate)


def test_fewer_layers_keep_less(bench, tmp_path):
    options = bench.parsed()
    part = bench.depth(options, bench.config_of(options, tmp_path))
    assert part["layers"] == {"full": 12, "top third": 4}
    assert part["kept_bytes"]["top third"] < 0.5 * part["kept_bytes"]["full"]
    assert part["ratios"]["cpu"]["median"] > 0


def test_the_table_shows_a_missed_target(bench):
    three = {"median": 1.2, "min": 1.0, "max": 1.4}
    both = {"wall": 1.0, "cpu": 1.0}
    result = {
        "settings": {"model": "m", "clients": 1, "steps": 1, "batch_size": 1, "rounds": 1, "repeats": 1, "threads": 1},
        "overhead": {
            "seconds_per_round": {"fedquilt": both, "PyTorch loop": both},
            "record_seconds": 0.1,
            "ratios": {"PyTorch loop": {"wall": three, "cpu": three}},
        },
        "depth": {
            "layers": {"full": 12, "top third": 4},
            "ratios": {"wall": {**three, "median": 0.6}, "cpu": three},
            "kept_bytes": {"full": 3e6, "top third": 1e6},
            "resident": None,
        },
    }
    text = bench.table(json.loads(json.dumps(result)))
    assert [line.split()[0] for line in text.splitlines() if "MISSED" in line] == ["fedquilt"]
    assert "0.333" in text
