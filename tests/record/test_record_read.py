"""What a run wrote is read back, without torch; what is damaged is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from run_folders import create

from fedquilt.core.errors import RunError
from fedquilt.record import read_config, read_environment, read_partition, read_result, read_rounds


def test_rounds_are_lines_and_nan_is_null(tmp_path):
    made = create(tmp_path / "toy")
    made.append_round({"round": 0, "loss": float("nan"), "list": [float("inf"), 1.5], "clients": {3: {"x": 1}}})
    made.append_round({"round": 1, "tensor": torch.tensor([1.0, float("nan")]), "pair": (1, 2)})
    assert read_rounds(made.folder) == [
        {"round": 0, "loss": None, "list": [None, 1.5], "clients": {"3": {"x": 1}}},
        {"round": 1, "tensor": [1.0, None], "pair": [1, 2]},
    ]
    assert len((made.folder / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', ""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    made = create(tmp_path / "toy")
    (made.folder / "rounds.jsonl").write_text(f'{{"round": 0}}\n{line}\n{{"round": 2}}\n')
    with pytest.raises(RunError, match=r"rounds\.jsonl: line 2 is not a finished round"):
        read_rounds(made.folder)


def test_the_result_is_read_back_and_readers_want_a_run(tmp_path):
    made = create(tmp_path / "toy")
    made.save_result({"status": "finished", "rounds": 3})
    assert read_result(made.folder) == {"status": "finished", "rounds": 3}
    for read in (read_config, read_partition, read_environment, read_result, read_rounds):
        with pytest.raises(RunError, match="no such run folder"):
            read(tmp_path / "none")


def test_reading_a_run_needs_no_torch(tmp_path):
    made = create(tmp_path / "toy")
    code = "import sys, fedquilt.record as r; r.read_rounds(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(made.folder)], check=False).returncode == 0
