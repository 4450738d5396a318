"""``fedquilt site``: keys for both sides with what goes where, and a federation on this machine that ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedquilt.cli.site as site
from fedquilt.core.method import Release
from fedquilt.core.shell import install_extra
from fedquilt.core.types import Reply
from fedquilt.privacy.ledger import Ledger, ledger_folder
from fedquilt.privacy.ledger_book import Allowance, Asked


@pytest.fixture
def flower():
    pytest.importorskip("flwr")


def test_the_operators_part(flower, command):
    said = command("site", "certs", "--out", "keys", "--host", "fl.example.org", "--host", "10.0.0.7")
    assert said.code == 0
    assert sorted(path.name for path in Path("keys").iterdir()) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    assert f"{Path('keys/ca.key')}: stays with the operator" in said.out
    assert f"{Path('keys/ca.crt')}: goes to every organisation (until 20" in said.out
    assert "flower-superlink --ssl-ca-certfile" in said.out
    assert "--enable-supernode-auth" in said.out


def test_an_organisations_part(flower, command):
    said = command("site", "certs", "--out", "keys", "--node", "hospital-a")
    assert said.code == 0
    assert sorted(path.name for path in Path("keys").iterdir()) == ["hospital-a", "hospital-a.pub"]
    assert f"{Path('keys/hospital-a')}: stays with the organisation" in said.out
    assert "hospital-a.pub: goes to the operator" in said.out
    assert "flwr supernode register" in said.out
    assert "--auth-supernode-private-key" in said.out


def test_keys_by_number_and_a_second_call_that_only_adds(flower, command):
    assert command("site", "certs", "--out", "keys", "--host", "localhost", "--nodes", "2").code == 0
    before = {path.name: path.read_bytes() for path in Path("keys").iterdir()}
    assert {"node-0", "node-0.pub", "node-1", "node-1.pub"} < before.keys()
    assert command("site", "certs", "--out", "keys", "--node", "third").code == 0
    assert {name: Path("keys", name).read_bytes() for name in before} == before


def test_what_is_there_is_not_overwritten_and_only_the_server_is_renewed(flower, command):
    assert command("site", "certs", "--out", "keys", "--host", "localhost", "--node", "a").code == 0
    said = command("site", "certs", "--out", "keys", "--host", "localhost")
    assert said.code == 1
    assert "server.key: is there already and is never overwritten; renew it with --renew" in said.err
    said = command("site", "certs", "--out", "keys", "--node", "a")
    assert said.code == 1
    assert "a: is there already and is never overwritten" in said.err
    authority = Path("keys/ca.crt").read_bytes()
    server = Path("keys/server.crt").read_bytes()
    assert command("site", "certs", "--out", "keys", "--host", "localhost", "--renew").code == 0
    assert Path("keys/ca.crt").read_bytes() == authority
    assert Path("keys/server.crt").read_bytes() != server


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "give --host (for the operator), or --node or --nodes (for each organisation)"),
        (("--node", "a", "--renew"), "--renew: give every --host of the new server certificate"),
        (("--host", "https://a.org"), "--host https://a.org: neither a host name nor an address"),
        (("--node", "a/b"), "--node a/b: not a name for a node"),
    ],
)
def test_what_is_missing_or_wrong_is_told(flower, command, words, text):
    said = command("site", "certs", "--out", "keys", *words)
    assert said.code == 1
    assert text in said.err
    assert not Path("keys/server.key").exists()


@pytest.mark.parametrize("words", [("certs", "--out", "keys", "--node", "a"), ("up",)])
def test_without_flower_it_says_how_to_get_it(command, monkeypatch, words):
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    said = command("site", *words)
    assert said.code == 1
    assert (
        f"fedquilt site {words[0]}: needs flwr and cryptography; install it with: {install_extra('flower')}\n"
        in said.err
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_federation_on_this_machine_ends_with_its_command(flower, tmp_path, number):
    from fedquilt.engine.flower.processes import marked

    code = "from fedquilt.cli import main; main()"
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "site", "up", "--nodes", "1", "--folder", str(tmp_path / "trial")],
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while "Ctrl-C ends it" not in (tmp_path / "said").read_text():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end
            time.sleep(0.5)
        assert not Path("/proc").is_dir() or marked(str(tmp_path / "trial"))
    finally:
        process.send_signal(number)
        code = process.wait(60)
    told = (tmp_path / "said").read_text()
    assert code == 130
    assert "1 SuperNode is online at 127.0.0.1:" in told
    assert f"export FLWR_HOME={tmp_path / 'trial' / 'flower'} FLWR_TELEMETRY_ENABLED=0" in told
    assert "flwr run APP trial" in told
    assert marked(str(tmp_path / "trial")) == []


def test_status_shows_what_each_client_gave_away_and_how_much_it_may(command, tmp_path):
    said = command("site", "status", "--memories", str(tmp_path / "none"))
    assert said.code != 0
    assert "no such folder; give the folder that the node's config sets as memories" in " ".join(said.err.split())
    said = command("site", "status", "--memories", str(tmp_path))
    assert "no client has answered a run with privacy.mode = 'local'" in said.out
    release, own = Release(8.0, 100.0, 1e-5), Allowance(8.0, 1e-5)
    for client, allowed in ((0, own), (3, None)):
        ledger = Ledger(ledger_folder(tmp_path, client), allowed)
        for number in range(30):
            ledger.release(Asked("ab", number, "fit"), release, Reply(client, {}, 1.0), {})
    said = command("site", "status", "--memories", str(tmp_path))
    first, second = said.out.splitlines()
    assert first.startswith("client-000: 30 replies in 1 run, epsilon 6.326 of 8 at delta 1e-05, 1.674 left")
    assert second.startswith("client-003: 30 replies in 1 run, epsilon 6.326 of 100 at delta 1e-05")
    assert "set by the first run file" in second
    told = json.loads(command("site", "status", "--memories", str(tmp_path), "--json").out)["clients"]
    assert (told["client-000"]["epsilon"], told["client-000"]["by"]) == (8.0, "site")


def test_status_shows_the_queries_that_each_client_answered(command, tmp_path):
    from fedquilt.privacy.answers import Answers, Noise, answers_folder

    for number, noise in enumerate((0.5, 0.0)):
        own = Answers(answers_folder(tmp_path, number))
        own.count("aaaa0000", ["r1", "r2"], Noise(noise, 1e-5), {})
    said = command("site", "status", "--memories", str(tmp_path)).out
    assert "client-000: 1 query answered after 1 run, about 2 rows, at most 1 about one row; epsilon of a row" in said
    assert "client-001: 1 query answered after 1 run, about 2 rows, at most 1 about one row; without noise" in said
    told = json.loads(command("site", "status", "--memories", str(tmp_path), "--json").out)
    assert told["answers"]["client-000"]["rows"] == 2
