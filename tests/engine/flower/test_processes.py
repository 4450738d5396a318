"""Processes of a local federation: their output, how their end is reported, and that none is left running."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from fedquilt.core.errors import FedquiltError
from fedquilt.engine.flower import processes
from fedquilt.engine.flower.processes import (
    Started,
    free_port,
    listening,
    marked,
    marked_as,
    tail,
    tool,
    wait_for,
)

SLEEPER = "import time; print('here', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)  # detached'], start_new_session=True)\n"
    "print('started', flush=True)\n"
    "time.sleep(60)\n"
)


def python(folder: Path, code: str, name: str = "worker") -> Started:
    return Started(name, [sys.executable, "-c", code], folder / f"{name}.log", os.environ, f"{folder}/{name}")


def test_a_process_that_ends_too_soon_is_told_with_the_end_of_its_log(tmp_path):
    started = python(tmp_path, "import sys; print('first'); print('no room left'); sys.exit(3)")
    with pytest.raises(
        FedquiltError, match=r"(?s)worker ended \(exit code 3\): the end of .*worker\.log.*no room left"
    ):
        wait_for(lambda: False, started, 30, "it does not listen")


def test_a_process_that_takes_too_long_is_told_too(tmp_path):
    started = python(tmp_path, SLEEPER)
    try:
        wait_for(lambda: "here" in started.said, started, 30, "it says nothing")
        with pytest.raises(FedquiltError, match=r"(?s)worker: after 0\.3 s it does not listen: the end of .*here"):
            wait_for(lambda: False, started, 0.3, "it does not listen")
    finally:
        started.end(signal.SIGKILL)
    assert not started.running


def test_one_log_for_all_lives_but_each_knows_its_own_words(tmp_path):
    for word in ("one", "two"):
        started = python(tmp_path, f"print('{word}')")
        started.process.wait(30)
        assert started.said.split() == [word]
    assert (tmp_path / "worker.log").read_text().split() == ["one", "two"]
    assert tail(started, lines=1).splitlines()[1:] == ["two"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="children in other sessions are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_in_sessions_of_their_own_end_with_it(tmp_path, number):
    started = python(tmp_path, PARENT)
    wait_for(lambda: "started" in started.said, started, 30, "it has no child")
    assert len(marked(str(tmp_path))) == 2
    assert len(marked_as(f"{tmp_path}/worker", "detached")) >= 1
    assert marked(str(tmp_path) + "-other") == []
    started.end(number, seconds=5)
    end = time.monotonic() + 60
    while marked(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)
    assert marked(str(tmp_path)) == []


def test_a_command_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    with pytest.raises(FedquiltError, match=r"flower-nothing: no such command; install Flower with: .*pip install "):
        tool("flower-nothing")


def test_a_command_beside_this_python_comes_first(monkeypatch, tmp_path):
    (tmp_path / "flower-superlink").write_text("")
    monkeypatch.setattr(processes.sys, "executable", str(tmp_path / "python"))
    assert tool("flower-superlink") == str(tmp_path / "flower-superlink")


def test_ports():
    port = free_port()
    assert not listening(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert listening(taken.getsockname()[1])
