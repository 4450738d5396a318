"""Mutated run files end in ``ok`` or in a refusal, and soon."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from run_file_fuzz import fuzzed, run_files


def test_there_are_run_files_to_start_from():
    assert len(run_files()) > 12


@pytest.mark.parametrize("count", [40, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_mutated_run_file_ends_in_a_traceback_or_takes_long(tmp_path, count, capsys):
    counts, failed = fuzzed(tmp_path, count)
    assert failed == []
    assert counts["refused"] > count // 2
    assert counts["ok"] + counts["refused"] == count
