"""LaDa with an endpoint as the teacher: a small server on this machine answers, and no network is used."""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedquilt.config.load import examine, parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, EndpointError, RunError
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import whole_plan
from fedquilt.record import Record, read_environment, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes
from fedquilt.report.caveats import notes
from fedquilt.report.runs import read_run

FILE = """
rounds = 2
threads = 1
device = "cpu"
evaluation = { every = 2, limit = 2 }
model = { name = "tiny:llama?layers=1&width=16", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=16&test=4", answers = "number", new_tokens = 6 }
partition = { scheme = "iid", num_clients = 2 }
clients = { shares = "1", budgets = [1] }
adapter = { rank = 2 }
training = { steps = 2, batch_size = 4, learning_rate = 0.01 }
method = { name = "lada", candidates = 6, path_tokens = 6, path_bytes = 24 }

[server]
data = { source = "arithmetic:blank?train=20&test=4", answers = "number", new_tokens = 6 }
"""
KEY = "sk-hidden-0123456789"
WRITES = "and server.endpoint only writes texts; set it to"
FITTING = {"direction": "down", "reference": "self", "sample_reward": "paper"}

pytest.importorskip("httpx")


class Place(ThreadingHTTPServer):
    """An endpoint that repeats the end of the question, and notes what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.asked: list[str] = []
        self.keys: set[str] = set()
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Answering(BaseHTTPRequestHandler):
    server: Place

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][1]["content"]
        self.server.asked.append(question)
        self.server.keys.add(self.headers["authorization"])
        content = json.dumps({"choices": [{"message": {"content": f" = {len(question)} "}}]}).encode()
        self.send_response(400 if self.server.broken else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served() -> Iterator[Place]:
    with Place() as own, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", KEY)
        threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield own
        own.shutdown()


@pytest.fixture(scope="module")
def taught(served: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run, and what it asked."""
    folder = run(config(served.url), tmp_path_factory.mktemp("endpoint") / "run")
    return folder, [*served.asked]


@pytest.fixture
def place(served: Place, taught: object) -> Place:
    """The endpoint, which forgets what it was asked."""
    served.asked.clear()
    return served


def raw(url: str, **method: Any) -> dict[str, Any]:
    made = tomllib.loads(FILE)
    made["server"]["endpoint"] = {"url": url, "name": "large", "key_env": "TEST_KEY", "retries": 0}
    return {**made, "method": {**made["method"], **FITTING, **method}}


def config(url: str, **method: Any) -> Config:
    return parse(raw(url, **method))


def end(folder: Path) -> list[Any]:
    _, state, memories = Record.open(folder).load_checkpoint()
    return [state, {str(client): memory for client, memory in memories.items()}]


def test_clients_learn_from_what_an_endpoint_writes(
    place: Place, taught: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, asked = taught
    state, memories = end(folder)
    assert place.keys == {f"Bearer {KEY}"}
    assert len(asked) == len(set(asked)) == len(state["server"]["memory"]["said"])  # each question once
    assert 6 <= len(asked) <= 12
    assert all(text.startswith("= ") for text in state["server"]["memory"]["said"].values())
    assert (state["server"]["params"], state["server"]["round"], state["offer"]) == ({}, 2, None)
    assert all(own["lesson"]["filter"]["version"] == 2 for own in memories.values())
    for line in read_rounds(folder):
        assert "server" not in (line["evaluation"] or {})
        assert line["state"].keys() == {"unread", "server_right"}
        assert all("taken" in sent["metrics"] for sent in line["exchanges"][1]["clients"].values())
    assert read_environment(folder)["endpoint"] == {"url": place.url, "name": "large", "reproducible": False}
    assert any("another run with this seed may end elsewhere" in note for note in notes({"lada": [read_run(folder)]}))
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    with pytest.raises(RunError, match=r"has no \[server.model\], so the server owns no model"):
        export(folder, tmp_path / "adapter", server=True)


def test_a_resumed_run_asks_for_nothing_that_it_was_told(
    place: Place, taught: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(taught[0], tmp_path / "run"))
    monkeypatch.setattr(place, "broken", True)
    resume(folder, back_to=1)
    assert place.asked == []  # the texts of the second round are in the checkpoint of the first one
    assert tree_to_bytes(end(folder)) == tree_to_bytes(end(taught[0]))
    with pytest.raises(EndpointError, match="answered 400"):
        run(config(place.url), tmp_path / "other")


def test_rationales_may_be_those_of_an_endpoint(place: Place, tmp_path: Path) -> None:
    """Each round asks for its own questions; beside lada they are the texts that it has asked for."""
    method = {"name": "fedcot", "candidates": 6, "path_tokens": 6, "path_bytes": 24}
    folder = run(parse({**raw(place.url), "method": method}), tmp_path / "fedcot")
    assert len(place.asked) == 12
    assert all("loss" in sent["metrics"] for sent in read_rounds(folder)[1]["exchanges"][0]["clients"].values())
    assert end(folder)[0]["server"]["memory"] == {}
    place.asked.clear()
    both = run(config(place.url, scheme="fedcot"), tmp_path / "both")
    assert len(place.asked) == len(set(place.asked)) == len(end(both)[0]["server"]["memory"]["said"])
    assert place.keys == {f"Bearer {KEY}"}


def test_the_plan_counts_texts_without_asking(place: Place) -> None:
    plans, server = whole_plan(config(place.url))
    assert server is None
    assert (plans[0].bytes_up, place.asked) == (plans[0].gradient_bytes + 6 * (24 + 4 + 16), [])
    build(config(place.url))
    assert place.asked == []


def test_a_site_needs_neither_key_nor_endpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    server = build(config(place.url), {0}, on_site=True).federation.server
    assert server is not None
    assert (server.texts_only, server.questions.texts, place.asked) == (True, (), [])
    with pytest.raises(ConfigError, match="this environment variable is not set"):
        build(config(place.url))


def test_what_needs_likelihoods_or_training_is_refused_before_anything_is_asked(place: Place) -> None:
    wrong = {"direction": "both", "reference": "peer", "sample_reward": "reliable"}
    with pytest.raises(ConfigError) as caught:
        build(config(place.url, **wrong))
    assert [problem.split(" of the server's model, ") for problem in caught.value.problems] == [
        ["method.direction = 'both': needs training", f"{WRITES} 'down'"],
        ["method.sample_reward = 'reliable': needs log-probabilities", f"{WRITES} 'paper'"],
        ["method.reference = 'peer': needs log-probabilities", f"{WRITES} 'self', or method.contrast to 0"],
    ]
    with pytest.raises(ConfigError, match=r"method\.scheme = 'fedmkt': needs a model of the server's own"):
        build(parse({**raw(place.url), "method": {"name": "lada", "scheme": "fedmkt", **FITTING}}))
    with pytest.raises(ConfigError, match=r"server\.endpoint: method\.name = 'fedcollm' needs a model"):
        build(parse({**raw(place.url), "method": {"name": "fedcollm"}}))
    with pytest.raises(ConfigError, match=r"method\.filter = 'confidence'"):
        build(parse({**raw(place.url), "method": {"name": "lada", "filter": "confidence", "direction": "down"}}))
    with pytest.raises(ConfigError, match=r"method\.prior = 'confidence': needs .*; set it to 'none'"):
        build(config(place.url, **FITTING, prior="confidence"))
    private = raw(place.url)
    private["server"]["share"] = "private"
    with pytest.raises(ConfigError, match=r"method\.questions = 'private': server\.endpoint would be told"):
        build(parse({**private, "method": {"name": "fedcot", "questions": "private"}}))
    for name in ("verified", "loss"):
        settings = {"name": "lada", "filter": name, "direction": "down", "contrast": 0.0}
        assert check(parse({**raw(place.url), "method": settings})) == []
    assert place.asked == []


def test_a_check_finds_what_is_wrong_with_the_endpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(config(place.url)) == []
    monkeypatch.delenv("TEST_KEY")
    (problem,) = check(config(place.url))
    assert problem.startswith("server.endpoint.key_env = 'TEST_KEY': this environment variable is not set")
    made = raw(place.url)
    made["server"] |= {"batch_size": 3, "private": {"source": "nowhere.csv"}, "training": {"steps": 3}}
    assert [problem.partition(":")[0] for problem in examine(made)[0]] == [
        *("server.private", "server.training", "server.batch_size")
    ]
    made = raw(place.url)
    made["server"]["model"] = {"name": "arith-llama", "task": "causal-lm"}
    (problem,) = examine(made)[0]
    assert problem.startswith("server: give either server.model, which the server loads, or server.endpoint")
    made = raw("http://host/v1")
    (problem,) = examine(made)[0]
    assert problem.startswith("server.endpoint: url is 'http://host/v1': the key could be read on its way")
    del made["server"]["endpoint"]["url"]
    (problem,) = examine(made)[0]
    assert problem == "server.endpoint.url: missing; it has no default, so give it under [server.endpoint]"
