"""The script of docs/guide/patch.md in the processes of two SuperNodes, over a real SuperLink with TLS."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("flwr")
pytest.importorskip("trl")

from project_sources import ROOT
from safetensors.torch import load_file
from trainers import rows_of, saved_model

from fedquilt.config.load import load
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.experiment.flower_app import deploy
from fedquilt.record import read_result, read_rounds

pytestmark = pytest.mark.slow


def block(language: str) -> str:
    """The only block of this language on the page."""
    text = (ROOT / "docs" / "guide" / "patch.md").read_text("utf-8")
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return found


def test_two_sites_with_their_own_scripts_train_over_a_superlink(tmp_path, monkeypatch):
    model = saved_model(tmp_path / "base")
    for site in range(2):
        folder = tmp_path / f"site-{site}"
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(site, 12 + 8 * site)))
        # both nodes are on one machine, with one environment
        script = block("py").replace('os.environ["BASE"]', repr(str(model)))
        script = script.replace('report_to="none"', 'report_to="none", use_cpu=True, bf16=False')
        script = script.replace('os.environ["ROWS"]', repr(str(folder / "rows.jsonl")))
        (folder / "train.py").write_text(script.replace('SFTConfig("out"', f"SFTConfig({str(folder / 'out')!r}"))
    text = block("toml").replace("/models/base", str(model)).replace("rounds = 3", "rounds = 2")
    file, folder = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(f'seed = 3\noutput = "{tmp_path}"\ndevice = "cpu"\n{text}\n[network]\ntimeout = 300\nwait = 300\n')
    nodes = lambda node: {"trainer": str(tmp_path / f"site-{node}" / "train.py")}  # noqa: E731
    said: list[str] = []
    with Trial(tmp_path / "trial", 2, node_config=nodes) as trial:
        trial.ready()
        monkeypatch.setenv("FLWR_HOME", str(trial.home))
        deploy(load(file)[0], folder, "trial", said.append)
    assert read_result(folder) is not None
    lines = read_rounds(folder)
    assert len(lines) == 2
    for line in lines:
        clients = line["exchanges"][0]["clients"]
        assert not line["exchanges"][0]["dropped"]
        assert [one["metrics"]["steps"] for one in clients.values()] == [15, 15]
    first, last = ([one["metrics"]["loss"] for one in line["exchanges"][0]["clients"].values()] for line in lines)
    assert all(after < before for before, after in zip(first, last, strict=True))
    exported = load_file(folder / "adapters" / "global" / "adapter_model.safetensors")
    assert len(exported) == 8
    assert all(tensor.abs().sum() > 0 for tensor in exported.values())
