"""What is seen of a run that goes on elsewhere."""

import os
import re
import shutil

import pytest

from fedquilt.core.errors import RunError
from fedquilt.experiment.run import run
from fedquilt.report.following import FINISHED, RUNNING, STOPPED, WAITING, Following


def listing(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_is_followed_from_before_it_is_there_to_its_end(config, tmp_path):
    folder, seen = tmp_path / "runs" / "new", []
    following = Following([folder])
    assert following.look()[1:] == (WAITING, f"{folder}: does not exist there yet; waiting for it")
    assert "waiting for it" in following.page().content.decode()

    class Watch:
        def started(self, name, first, rounds):
            seen.append(following.look())

        def round(self, line):
            seen.extend([following.look(), following.look()])

    run(config(), folder, Watch())
    before = listing(folder)
    assert [one.state for one in seen] == [RUNNING] * 7
    assert [one.version for one in seen] == [2, 3, 3, 4, 4, 5, 5]  # it changes only where the record has
    assert seen[0].text == f"{folder}: no round is finished yet"
    assert seen[2].text.startswith(f"{folder}: round 1 of 3: loss ")
    last = following.look()
    assert (last.version, last.state) == (6, FINISHED)
    assert last.text.startswith(f"{folder}: finished after 3 rounds: loss ")
    assert following.look() is last
    assert listing(folder) == before  # nothing is written there


def test_a_run_that_nobody_writes_is_called_stopped(config, tmp_path):
    class Stop:
        def round(self, line):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "run", Stop())
    seen = Following([tmp_path / "run"]).look()
    assert seen.state == STOPPED
    assert re.search(r"round 1 of 3: .* no process is writing it; to go on: .*run --resume ", seen.text)


def test_several_runs_go_on_while_one_of_them_does(finished, tmp_path):
    seen = Following([finished, tmp_path / "later"]).look()
    assert seen.state == WAITING
    assert "finished after 3 rounds" in seen.text
    assert "waiting for it" in seen.text
    assert Following([finished, finished]).look().state == FINISHED


def test_a_folder_that_is_no_run_is_refused_and_an_empty_one_waited_for(finished, tmp_path):
    with pytest.raises(RunError, match=f"it contains runs, give one of them: {finished.name}"):
        Following([finished.parent])
    assert Following([tmp_path]).look().text == f"{tmp_path}: no run is there yet; waiting for it"


def test_a_damaged_record_is_tried_again_a_few_times_and_then_told(finished, tmp_path, monkeypatch):
    reads = []

    def unreadable(folder):
        reads.append(folder)
        raise RunError("lines of finished rounds are lost <b>")

    run = shutil.copytree(finished, tmp_path / "run")
    following = Following([run])
    monkeypatch.setattr("fedquilt.report.following.read_rounds", unreadable)
    seen = [following.look() for _ in range(6)]
    assert [one.version for one in seen] == [0, 0, 1, 1, 1, 1]
    assert len(reads) == 3
    assert seen[-1].state == STOPPED
    assert "are lost <b>" in seen[-1].text
    assert b"are lost &lt;b&gt;" in following.page().content
    reads.clear()
    os.utime(run / "checkpoint.json")
    following.look()
    assert len(reads) == 1


def test_a_record_of_a_strange_form_does_not_end_what_follows_others(finished, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    for name in ("config", "environment"):
        (strange / f"{name}.json").write_text("{}")  # as of a version without manifests
    following = Following([strange, finished])
    for _ in range(3):
        seen = following.look()
    assert (seen.state, seen.text) == (STOPPED, "a record cannot be read: unexpected KeyError: 'rounds'")
    assert following.page().content.startswith(b"<!doctype html>")
