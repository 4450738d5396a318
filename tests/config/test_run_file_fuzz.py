"""Mutated run files end in ``ok`` or in a refusal, and soon."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from run_file_fuzz import End, by_processes, fuzzed, run_files


def test_there_are_run_files_to_start_from():
    assert len(run_files()) > 12


def right(ends: list[End], count: int) -> bool:
    assert [end for end in ends if end.failed] == []
    assert [end.number for end in ends] == list(range(count))
    return sum(end.found == "refused" for end in ends) > count // 2


def test_no_mutated_run_file_ends_in_a_traceback_or_takes_long(tmp_path):
    assert right(fuzzed(tmp_path, range(25)), 25)


@pytest.mark.slow
def test_five_thousand_in_two_processes(tmp_path):
    ends = [end for part in by_processes(tmp_path, range(5000)) for end in part]
    assert right(ends, 5000)
