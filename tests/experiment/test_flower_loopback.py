"""A real SuperLink and three SuperNodes on loopback: the bits of embedded, also when the server dies in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedquilt.config.load import load
from fedquilt.experiment import run
from fedquilt.record import Record, read_rounds

pytestmark = pytest.mark.slow

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "site"
version = "1.0.0"
description = "A trial."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "site_app:server"
clientapp = "site_app:client"

[tool.flwr.app.config]
timeout = 120
wait = 120
"""
APP = """\
from pathlib import Path

from fedquilt.experiment.flower import server_app, site_app

RUN = Path(__file__).parent / "tiny.toml"
server = server_app(RUN)
client = site_app(RUN)
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def until(true, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"after {seconds} s: {what}"
        time.sleep(0.5)


@pytest.fixture
def federation(tmp_path):
    """``flwr(words)`` runs Flower's command against a SuperLink with three SuperNodes, which end with the test."""
    bin, port, home = Path(sys.executable).parent, free_port(), tmp_path / "flower"
    home.mkdir()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "trial"\n[superlink.trial]\naddress = "{address}"\ninsecure = true\n'
    )
    around = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    around["PATH"] = f"{bin}{os.pathsep}{around['PATH']}"
    started = []

    def start(name: str, *words: str) -> None:
        log = open(tmp_path / f"{name}.log", "w")  # noqa: SIM115  (open as long as the process)
        process = subprocess.Popen(
            [bin / words[0], *words[1:]], stdout=log, stderr=log, env=around, cwd=tmp_path, start_new_session=True
        )
        started.append(process)

    def listening() -> bool:
        with socket.socket() as made:
            return made.connect_ex(("127.0.0.1", port)) == 0

    def flwr(*words: str) -> str:
        done = subprocess.run([bin / "flwr", *words], capture_output=True, text=True, env=around, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        superlink = ("flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation")
        start("superlink", *superlink)
        until(listening, 60, (tmp_path / "superlink.log").read_text())
        for partition in range(3):
            config = f"partition-id={partition} memories='{tmp_path / 'sites'}'"
            node = ("--insecure", "--superlink", address, "--port", str(free_port()), "--node-config", config)
            start(f"node{partition}", "flower-supernode", *node)
        yield flwr
    finally:
        for process in reversed(started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def server_processes(home: Path) -> list[int]:
    """The ServerApp processes of this test's SuperLink."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words, around = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"flwr-serverapp" in words and str(home).encode() in around:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the server's process in /proc")
def test_real_nodes_end_in_the_same_bits_and_a_killed_server_goes_on(federation, tiny, tmp_path):
    app, folder = tmp_path / "app", tmp_path / "runs" / "tiny"
    app.mkdir()
    changes = ("partition.num_clients=3", "partition.classes_per_client=4", "clients.cohort=3", "head.policy=local")
    settings = load(tiny, changes)[0]
    text = tiny.read_text().replace("num_clients = 6", "num_clients = 3").replace("cohort = 4", "cohort = 3")
    text = text.replace("classes_per_client = 2", "classes_per_client = 4") + '\n[head]\npolicy = "local"\n'
    (app / "tiny.toml").write_text(f'output = "{tmp_path / "runs"}"\n{text}')
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "site_app.py").write_text(APP)

    federation("run", str(app), "trial")
    until(lambda: folder.exists() and len(read_rounds(folder)) == 1, 240, "no first round")
    killed = server_processes(tmp_path / "flower")
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    federation("run", str(app), "trial")
    until((folder / "result.json").exists, 300, "the run did not finish")

    lines = read_rounds(folder)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all(len(line["exchanges"][0]["clients"]) == 3 for line in lines)
    whole = run(settings, tmp_path / "embedded")
    ours, theirs = (Record.open(path).load_checkpoint()[1]["params"] for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    for line, other in zip(lines, read_rounds(whole), strict=True):
        for client, moved in line["exchanges"][0]["clients"].items():
            # the heads stay with the clients: the loss is the same only if each goes on with its own
            assert moved["metrics"]["loss"] == other["exchanges"][0]["clients"][client]["metrics"]["loss"]
