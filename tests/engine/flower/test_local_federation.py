"""A local federation: three nodes over TLS with node authentication come online; intruders are refused by name."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedquilt.core.errors import FedquiltError
from fedquilt.engine.flower.certs import authority, node_key
from fedquilt.engine.flower.compat import LEASE_SECONDS
from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.processes import marked, wait_for

SEEN = Path("/proc").is_dir()


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    began = time.monotonic()
    with Trial(tmp_path_factory.mktemp("federation"), 3) as made:
        made.ready()
        print(f"three nodes online over TLS with node authentication after {time.monotonic() - began:.1f} s")
        yield made
    assert marked(str(made.folder)) == []


def online(trial: Trial) -> list[str]:
    return sorted(node["node-id"] for node in trial.nodes() if node["status"] == "online")


@pytest.mark.slow
def test_three_nodes_come_online(trial):
    assert online(trial) == sorted(trial.node_id(node) for node in range(3))
    assert len(online(trial)) == 3


INTRUDERS = {
    "an unknown key": "Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    "[code: 2004] Failed to activate SuperNode.",
    "no key": "Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    "[code: 2001] SuperNode authentication is enabled. All SuperNodes must be registered via the CLI.",
    "another authority": "CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate",
    "no authority": "CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate",
    "a key without TLS": "Exit Code: 303\nInsecure connection is enabled, but the SuperNode's private key is provided",
    "no TLS": "Connection attempt failed with exception: Server disconnected without sending a response.",
}
"""What a node that does not belong says of its failure, word for word in Flower 1.41."""


@pytest.fixture(scope="module")
def intruders(trial):
    """A process for each intruder; all have had time to try."""
    other = trial.folder / "other"
    authority(other)
    key = node_key(other, "intruder").key
    words = {
        "an unknown key": trial.supernode(key=key),
        "no key": trial.supernode(),
        "another authority": trial.supernode(key=key),
        "no authority": trial.supernode(key=key),
        "a key without TLS": trial.supernode(key=key, secure=False),
        "no TLS": ["env", "FLWR_LOG_LEVEL=DEBUG", *trial.supernode(secure=False)],  # else it only says that it failed
    }
    at = words["another authority"].index("--root-certificates")
    words["another authority"][at + 1] = str(other / "ca.crt")
    del words["no authority"][at : at + 2]
    processes = {name: trial.start(name.replace(" ", "-"), *line) for name, line in words.items()}
    end = time.monotonic() + 90
    while not all(INTRUDERS[name] in process.said for name, process in processes.items()):
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    yield processes
    for process in processes.values():
        process.end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTRUDERS)
def test_who_does_not_belong_is_refused_and_hears_why(trial, intruders, name):
    assert INTRUDERS[name] in intruders[name].said
    assert "SuperNode ID" not in intruders[name].said
    assert len(trial.nodes()) == 3
    assert online(trial) == sorted(trial.node_id(node) for node in range(3))


@pytest.mark.slow
def test_the_superlink_says_that_a_key_is_unknown(trial, intruders):
    assert "No SuperNode found with the given public key." in trial.logs("superlink")


@pytest.mark.slow
def test_a_killed_node_is_refused_until_its_lease_is_over_and_then_is_who_it_was(trial):
    before = trial.node_id(1)
    trial.kill_node(1)
    trial.start_node(1)
    seconds = trial.ready([1])
    print(f"a node killed with -9 and started at once was accepted after {seconds:.1f} s")
    assert "[code: 2004] Failed to activate SuperNode." in trial.log("node-1").read_text()
    assert "could not be activated." in trial.logs("superlink")
    assert seconds < LEASE_SECONDS + 25
    assert trial.node_id(1) == before
    assert len(online(trial)) == 3


@pytest.mark.slow
def test_a_node_that_signs_off_is_accepted_at_once(trial):
    before = trial.node_id(2)
    trial.kill_node(2, signal.SIGTERM)
    assert len(online(trial)) == 2
    trial.start_node(2)
    seconds = trial.ready([2])
    print(f"a node ended with SIGTERM and started at once was accepted after {seconds:.1f} s")
    assert seconds < 30
    assert trial.node_id(2) == before


@pytest.mark.slow
def test_a_killed_superlink_knows_its_nodes_again(trial):
    before = online(trial)
    trial.kill_superlink()
    time.sleep(8)  # nodes ask every 3 s, so each notices
    began = time.monotonic()
    trial.start_superlink()
    while not all("Connection successful after" in trial.logs(f"node-{node}") for node in range(3)):
        assert time.monotonic() - began < 60
        time.sleep(0.2)
    print(f"a SuperLink killed with -9 had its nodes back after {time.monotonic() - began:.1f} s")
    assert online(trial) == before
    assert len(before) == 3


@pytest.mark.slow
def test_a_revoked_node_ends_and_its_key_does_not_come_back(trial):
    trial.flwr("supernode", "unregister", str(trial.node_id(0)), "trial")
    revoked = trial.process("node-0")
    began = time.monotonic()
    while revoked.running:
        assert time.monotonic() - began < 90
        time.sleep(0.5)
    print(f"a revoked node ended after {time.monotonic() - began:.1f} s")
    assert len(online(trial)) == 2
    again = trial.flwr("supernode", "register", str(trial.certs / "node-0.pub"), "trial", check=False)
    assert again.returncode != 0
    assert "Public key already in use" in again.stdout + again.stderr
    intruder = trial.start("revoked", *trial.supernode(key=trial.key(0)))
    while intruder.running:
        assert time.monotonic() - began < 150
        time.sleep(0.5)
    assert "[code: 2004] Failed to activate SuperNode." in intruder.said


@pytest.mark.slow
def test_flowers_control_interface_does_not_ask_who_calls(trial, tmp_path):
    """Why the guide lets only /v1/fleet/ through: this must fail once Flower asks, and the guide can then say less."""
    intruder = node_key(tmp_path, "intruder")
    known = (trial.home / "config.toml").read_text()  # all that the next command has: an address and ca.crt, no secret
    assert "ca.crt" in known
    assert ".key" not in known
    trial.flwr("supernode", "register", str(intruder.public), "trial")
    started = trial.start("self-registered", *trial.supernode(key=intruder.key))
    wait_for(lambda: "SuperNode ID" in started.said, started, 60, "it is not accepted")
    assert started.running
    started.end()


@pytest.mark.slow
@pytest.mark.skipif(not SEEN, reason="running processes are found in /proc")
def test_a_folder_in_use_is_refused(trial):
    with pytest.raises(FedquiltError, match=r"a federation of this folder is still running \(processes \d+"):
        Trial(trial.folder, 1).__enter__()
    assert trial.process("superlink").running


@pytest.mark.slow
def test_without_tls_too_and_everything_ends_with_the_block(tmp_path):
    with Trial(tmp_path / "plain", 1, secure=False, node_config=lambda node: {"site": f"number {node}"}) as made:
        made.ready()
        assert len(online(made)) == 1
        assert not SEEN or marked(str(made.folder))
    assert marked(str(made.folder)) == []
    assert not made.process("superlink").running
    assert not (tmp_path / "plain" / "certs").exists()


def test_a_superlink_that_cannot_start_is_told_with_its_log(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        made = Trial(tmp_path, 1, secure=False)
        made.port = taken.getsockname()[1]
        with pytest.raises(FedquiltError, match=r"(?s)superlink ended \(exit code \d+\): .*address already in use"):
            made.__enter__()
    assert marked(str(tmp_path)) == []


@pytest.mark.parametrize(("value", "word"), [("it's", "it's"), ("a\nb", "line break")])
def test_a_node_config_that_flower_cannot_read_is_refused(tmp_path, value, word):
    with pytest.raises(FedquiltError, match=word):
        Trial(tmp_path, 1).supernode(name=value)


def test_the_words_that_start_a_node(tmp_path):
    words = Trial(tmp_path, 1).supernode(key=tmp_path / "key", **{"partition-id": 2, "memories": "/a b", "fast": True})
    assert words[-2:] == ["--node-config", "partition-id=2 memories='/a b' fast=true"]
    assert words[words.index("--auth-supernode-private-key") + 1] == str(tmp_path / "key")
    assert "--insecure" not in words


@pytest.mark.parametrize("name", INTRUDERS)
def test_the_guide_has_the_reasons_word_for_word(name):
    guide = (Path(__file__).parents[3] / "docs" / "guide" / "flower.md").read_text()
    assert INTRUDERS[name].splitlines()[-1].removeprefix("Connection attempt failed with exception: ") in guide


def test_no_nodes_are_no_federation(tmp_path):
    with pytest.raises(FedquiltError, match="--nodes 0: must be at least 1"):
        Trial(tmp_path, 0)


def test_a_node_with_a_key_signs_its_hello_with_it(tmp_path, monkeypatch):
    started = {}
    trial = Trial(tmp_path, 1, node_config={"epsilon": 8.0})
    monkeypatch.setattr(trial, "start", lambda name, *words: started.update({name: words}))
    trial._start_node(0)
    words = started["node-0"]
    key = str(trial.key(0))
    assert words[words.index("--auth-supernode-private-key") + 1] == key
    config = words[words.index("--node-config") + 1]
    assert f"key='{key}'" in config
    assert "partition-id=0" in config
    assert "epsilon=8.0" in config
