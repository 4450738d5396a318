"""One process at a time writes a run folder; the lock ends with the process, killed or not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
from run_folders import CONFIG, create

from fedquilt.core.errors import RunError
from fedquilt.record import Record, hold, holder, lock

HOLDING = """
import sys, time
from pathlib import Path
from fedquilt.record import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)


@pytest.fixture
def other():
    """``other(folder)``: a process that holds a folder; killed at the end if it still runs."""
    started = []

    def start(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def test_a_second_process_is_refused_by_the_name_of_the_first_until_that_is_killed(tmp_path, other):
    folder = create(tmp_path / "toy").folder
    assert holder(folder) is None
    process = other(folder)
    with (
        pytest.raises(
            RunError, match=rf"toy: is being written by process {process.pid} on .* \(since .*; one process at"
        ),
        hold(folder),
    ):
        pass
    assert f"process {process.pid} on " in holder(folder)
    with pytest.raises(RunError, match=rf"a run is there, and is being written by process {process.pid}"):
        Record.refuse(folder)
    process.kill()
    process.wait(30)
    with hold(folder) as held:
        held.check()
    assert not (folder / lock.LOCK).exists()


def test_a_run_that_is_being_built_is_held_too_and_leaves_nothing_if_it_is_not_made(tmp_path, other):
    process = other(tmp_path / "new")
    with pytest.raises(RunError, match=rf"new: is being written by process {process.pid}"), hold(tmp_path / "new"):
        pass
    process.kill()
    process.wait(30)
    with hold(tmp_path / "new"):
        pass
    with hold(tmp_path / "some" / "where" / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_goes_with_the_draft_to_the_run_it_becomes(tmp_path):
    folder = tmp_path / "toy"
    with hold(folder) as held:
        record = Record.create(folder, CONFIG, {}, {}, held)
        assert str(os.getpid()) in holder(folder)
        with pytest.raises(RunError, match="is being written by"), hold(folder):
            pass
        record.append_round({"round": 0})
        record.save_checkpoint(1, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_deleted_or_replaced_while_it_is_written_is_noticed(tmp_path, again):
    folder = tmp_path / "toy"
    with hold(folder) as held:
        record = Record.create(folder, CONFIG, {}, {}, held)
        record.append_round({"round": 0})
        record.save_checkpoint(1, {}, {})
        if again:
            shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        if again:
            (tmp_path / "copy").rename(folder)
        for act in (
            lambda: record.append_round({"round": 1}),
            lambda: record.save_checkpoint(2, {}, {}),
            lambda: record.save_result({}),
            record.check,
        ):
            with pytest.raises(RunError, match=r"toy: was deleted, moved or replaced while this run was writing it"):
                act()
    assert folder.exists() == again


def test_a_forked_process_does_not_keep_the_lock_of_its_parent(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    folder = create(tmp_path / "toy").folder
    read, write = os.pipe()
    with hold(folder):
        child = os.fork()
        if child == 0:
            os.read(read, 1)  # lives on behind its parent's lock
            os._exit(0)
    try:
        with hold(folder) as held:
            held.check()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = r"does not support file locks \(No locks available\).*set output or --folder"
    with pytest.raises(RunError, match=message), hold(tmp_path / "toy"):
        pass
