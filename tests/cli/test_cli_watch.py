"""The command ``fedquilt watch``: what it prints, refuses, and leaves behind when a signal ends it."""

import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection

import pytest

from fedquilt.cli import watch


@pytest.fixture
def served(monkeypatch):
    """What ``serve`` is called with, in place of a server."""
    calls = []

    def serve(following, listening, host, **options):
        calls.append((following.folders, listening.getsockname()[1], host, options))
        listening.close()

    monkeypatch.setattr("fedquilt.report.live.serve", serve)
    return calls


def test_the_address_is_printed_and_only_this_machine_is_let_in(command, served):
    said = command("watch", "runs/tiny", "--port", "0", "--until-done")
    ((_, port, host, options),) = served
    assert said.code == 0
    assert (host, options["until_done"]) == ("127.0.0.1", True)
    assert f"http://127.0.0.1:{port}/" in said.out
    assert "warning" not in said.out


def test_other_machines_are_let_in_with_a_warning_of_who_can_read(command, served):
    said = command("watch", "runs/tiny", "--host", "0.0.0.0", "--port", "0")
    assert f"http://{socket.gethostname()}:" in said.out
    assert "warning: everyone who can reach port" in said.out
    assert "without a password" in said.out


def test_a_taken_port_is_an_error_if_it_was_asked_for(command, served, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        said = command("watch", "runs/tiny", "--port", taken)
        assert said.code == 1
        assert f"cannot listen at 127.0.0.1, port {taken}" in said.err
        assert "give another --port, or 0" in said.err
        monkeypatch.setattr(watch, "PORT", taken)
        assert command("watch", "runs/tiny").code == 0
        assert served[-1][1] != taken


def test_what_is_not_installed_is_named(command, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    said = command("watch", "runs/tiny")
    assert said.code == 1
    assert "needs starlette and uvicorn; install with `" in said.err
    assert "[watch]" in said.err


def test_a_folder_of_runs_is_no_run(command, finished):
    said = command("watch", finished.parent)
    assert said.code == 1
    assert "it contains runs, give one of them: tiny" in said.err


def test_nothing_listens_after_a_signal(finished):
    ends = (signal.SIGINT, signal.SIGTERM)
    line = [sys.executable, "-m", "fedquilt", "watch", str(finished), "--port", "0"]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in ends]
    for process, end in zip(both, ends, strict=True):
        port = int(re.search(r":(\d+)/ shows the report", process.stdout.readline())[1])
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/events")
        stream = connection.getresponse()
        assert stream.readline() == b"event: changed\n"
        assert any(b"finished after 3 rounds" in line for line in iter(stream.readline, b""))  # and it stays open
        strange = HTTPConnection("127.0.0.1", port, timeout=20)
        strange.request("GET", "/page", headers={"Host": f"evil.example:{port}"})
        refused = strange.getresponse()
        assert refused.status == 403
        process.send_signal(end)
        out, err = process.communicate(timeout=20)
        assert process.returncode == (0 if end == signal.SIGINT else -signal.SIGTERM)
        assert "Traceback" not in err
        assert ("stopped watching" in out) == (end == signal.SIGINT)
        assert "finished after 3 rounds" in err
        assert "the page stays until Ctrl-C" in err
        for one in (stream, connection, refused, strange):
            one.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)
