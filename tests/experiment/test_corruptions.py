"""One byte of a run folder is changed: it is noticed, by the name of the file, or nothing comes out differently."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter

import pytest

from fedquilt.core.errors import FedquiltError
from fedquilt.experiment.export import export
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.record import read_rounds
from fedquilt.report.runs import read_run

CHANGES = ("head.policy=local", "rounds=3", "clients.cohort=3")
CLIENT = 1


class Stopping(Silent):
    def round(self, line):
        if line["round"] == 1:
            raise KeyboardInterrupt


@pytest.fixture
def runs(config, tmp_path):
    """A run that stopped after two of three rounds, and a finished one."""
    wanted = config(*CHANGES)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "stopped", Stopping())
    return tmp_path / "stopped", run(wanted, tmp_path / "finished")


def adapters(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def came_out(folder, out):
    """All that anybody may get from a run folder: its report, its adapters, an exported one, its rounds."""
    before = read_run(folder)
    seen = [before.config, before.partition, before.result and before.result["status"]]
    resume(folder)
    exported = adapters(export(folder, out, client=CLIENT))
    lines = [(line["round"], line["exchanges"], line["evaluation"]) for line in read_rounds(folder)]
    return json.dumps(seen, sort_keys=True), adapters(folder / "adapters"), exported, json.dumps(lines)


def played(runs, tmp_path, number):
    """Changes ``number`` single bytes, one at a time; gives what came of it by file."""
    draw, outcomes = random.Random(number), Counter()
    original = {}
    for folder in runs:
        shutil.copytree(folder, tmp_path / "copy")
        original[folder] = came_out(tmp_path / "copy", tmp_path / "out")
        shutil.rmtree(tmp_path / "copy")
    assert original[runs[0]][1:] == original[runs[1]][1:]
    for turn in range(number):
        folder, copy = runs[turn % 2], tmp_path / "copy"
        for left in (copy, tmp_path / "out"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(folder, copy)
        path = draw.choice(sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size))
        content = bytearray(path.read_bytes())
        place, flip = draw.randrange(len(content)), draw.randrange(1, 256)
        content[place] ^= flip
        path.write_bytes(content)
        kind = f"{path.parent.name}/*" if path.parent.name == "checkpoint" else path.name
        try:
            same, said = came_out(copy, tmp_path / "out") == original[folder], ""
        except FedquiltError as error:
            same, said = False, str(error)
        assert same or path.name in said, f"{path}, byte {place} ^ {flip}: another result or not named: {said!r}"
        outcomes[f"{kind}: {'harmless' if same else 'noticed'}"] += 1
    return outcomes


def test_some_changed_bytes_are_noticed_or_harmless(runs, tmp_path):
    outcomes = played(runs, tmp_path, 40)
    assert sum(outcomes.values()) == 40
    assert sum(count for what, count in outcomes.items() if "noticed" in what) > 20


@pytest.mark.slow
def test_500_changed_bytes_are_noticed_or_harmless(runs, tmp_path):
    outcomes = played(runs, tmp_path, 500)
    for what, count in sorted(outcomes.items()):
        print(f"{count:4d} {what}")
    noticed = sum(count for what, count in outcomes.items() if "noticed" in what)
    print(f"500 changed bytes: {noticed} noticed, {500 - noticed} harmless")
    assert sum(outcomes.values()) == 500
    assert noticed > 300
