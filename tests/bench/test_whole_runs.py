"""Whole runs side by side: the arms train the same, and others than the same are noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from arms import whole

    return whole


def told(folder, stem, loss, value):
    save_file({"a": torch.tensor([value])}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps({"losses": [{"0": loss}]}))


def test_differences_are_of_losses_and_of_the_way_from_the_start(whole, tmp_path):
    save_file({"a": torch.tensor([1.0])}, tmp_path / "start.safetensors")
    told(tmp_path, "bare_loop", 2.0, 3.0)
    told(tmp_path, "apple_pfl", 2.5, 3.2)
    found = whole.differences(tmp_path, ["bare loop on PEFT", "pfl"])
    assert found["bare loop on PEFT"] == (0.0, 0.0)
    assert found["pfl"] == pytest.approx((0.5, 0.1))


def test_the_table_has_ratios_of_one_turn(whole):
    ours = [dict.fromkeys(whole.FIGURES, 1.0), dict.fromkeys(whole.FIGURES, 2.0)]
    peers = [dict.fromkeys(whole.FIGURES, 3.0), dict.fromkeys(whole.FIGURES, 4.0)]
    runs = {"fedquilt, side by side": ours, "pfl": peers}
    said = whole.table({"batch_size": 4, "runs": runs, "losses": 1e-7, "tensors": 1e-6})
    seconds, ratios = (line for line in said.splitlines() if line.startswith("| pfl"))
    assert seconds.startswith("| pfl | 3.50 (3.00 to 4.00) |")
    assert ratios.startswith("| pfl | 2.50 (2.00 to 3.00) |")


@pytest.mark.slow
def test_arms_make_the_same_steps(whole, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"CLIENTS": 2, "STEPS": 2, "LAYERS": 2, "WIDTH": 8}.items():
        monkeypatch.setattr(whole, name, value)
    names = ["fedquilt, side by side", "bare loop on PEFT", "Fed-HeLLo's released way"]
    result = whole.measured(4, 1, 2, names, tmp_path / "pfl")
    assert result["losses"] < 1e-5
    assert all(run[0]["first cpu"] > run[0]["cpu"] > 0 for run in result["runs"].values())
