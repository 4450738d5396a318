"""A real SuperNode under local privacy that a server asks fifty times: it answers once, for no more than it may."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("flwr")

from fedquilt.engine.flower.local_federation import Trial
from fedquilt.engine.flower.processes import tail
from fedquilt.experiment.flower_app import write_app
from fedquilt.privacy.account import gaussian_epsilon
from fedquilt.privacy.ledger import ledgers

pytestmark = pytest.mark.slow

NOISE, ALLOWED, DELTA = 4.0, 4, 1e-5

SERVER = '''
"""A server that wants to know what lies under the noise."""

import hashlib, json, time
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import ServerApp

from fedquilt.core.rng import Rng
from fedquilt.core.types import Turn
from fedquilt.engine.flower.client import action_of
from fedquilt.engine.flower.codec import order_content, read_reply
from fedquilt.engine.flower.grid import GridEngine
from fedquilt.experiment.build import build
from fedquilt.experiment.flower import cards, read

app = ServerApp()
SAME = [("aaaaaaaaaaaaaaaa", 0)] * 18
OTHERS = [("aaaaaaaaaaaaaaaa", number) for number in range(1, 17)]
RUNS = [(f"{number:016x}", 0) for number in range(1, 17)]


@app.main()
def main(grid, context):
    experiment = build(read(Path(__file__).parents[1] / "run.toml"))
    engine = GridEngine(grid, cards(experiment), "aaaaaaaaaaaaaaaa")
    engine.hello(120)
    (exchange,) = experiment.method.exchanges
    state = experiment.method.init(Rng(1).child("init"))
    first = exchange.ask(state, Turn(0, experiment.federation.profiles, Rng(1)))[0]
    waiting, told = {}, []
    for place, (run, number) in enumerate([*SAME[:9], *OTHERS, *RUNS, *SAME[9:]]):
        order = replace(first, round=number, rng=Rng(place))  # another stream each time, too
        message = Message(order_content(order, 0, exchange.name, run), engine.nodes[0], f"train.{action_of(exchange)}")
        (id,) = grid.push_messages([message])
        waiting[id] = (run, number, order)
    while waiting:
        for answer in grid.pull_messages([*waiting]):
            run, number, order = waiting.pop(answer.metadata.reply_to_message_id)
            if answer.has_error():
                told.append([run, number, None, answer.error.reason])
            else:
                reply = read_reply(answer.content, 0, order, exchange.name, run)
                digest = hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(reply.params.items())))
                told.append([run, number, digest.hexdigest(), json.dumps([reply.weight, reply.metrics])])
        time.sleep(0.5)
    part = Path(context.run_config["folder"])
    part.with_suffix(".part").write_text(json.dumps(told))
    part.with_suffix(".part").rename(part)
'''


def test_a_node_that_is_asked_fifty_times_gives_no_more_than_its_site_allows(tiny, tmp_path):
    text = tiny.read_text()
    for old, new in (
        ("num_clients = 6", "num_clients = 1"),
        ("cohort = 4", "cohort = 1"),
        ("classes_per_client = 2", "classes_per_client = 10"),
        ("budgets = [1, 2, 3]", 'budgets = [3]\nshares = "1"'),
        ("rounds = 3", "rounds = 1000"),  # by the run file alone it would go on for long
        ('allocation = "rgd"', 'allocation = "rgd"\nweighting = "uniform"'),
    ):
        assert old in text
        text = text.replace(old, new)
    text += f'\n[privacy]\nmode = "local"\nnoise_multiplier = {NOISE}\n'
    app, told = write_app(tmp_path / "app", text).parent, tmp_path / "told.json"
    (app / "app" / "server_app.py").write_text(SERVER, encoding="utf-8")
    epsilon = gaussian_epsilon(NOISE, ALLOWED, DELTA)
    with Trial(tmp_path / "federation", 1, secure=False, node_config={"epsilon": epsilon, "delta": DELTA}) as trial:
        trial.ready()
        trial.flwr("run", str(app), "trial", "--run-config", f"folder={json.dumps(str(told))}")
        began = time.monotonic()
        while not told.exists():
            assert time.monotonic() - began < 1200, tail(trial.process("superlink"), 40)
            time.sleep(0.5)
        seconds = time.monotonic() - began
        answers = json.loads(told.read_text())
    assert len(answers) == 50
    given = {(run, number): set() for run, number, *_ in answers}
    for run, number, digest, words in answers:
        if digest is None:
            assert "this client's privacy allowance is spent" in words or "was answered before" in words
        else:
            assert words == "[1.0, {}]", "weight and metrics say nothing"
            given[run, number].add(digest)
    assert all(len(digests) <= 1 for digests in given.values()), "one answer to one question, however often"
    assert len([digests for digests in given.values() if digests]) == ALLOWED
    assert len(set().union(*given.values())) == ALLOWED
    (own,) = ledgers(tmp_path / "federation" / "sites").values()
    assert (own["releases"], own["by"]) == (ALLOWED, "site")
    assert own["spent"] == pytest.approx(epsilon)
    print(f"50 questions in {seconds:.0f} s: {ALLOWED} answers, epsilon {own['spent']:.3f} of {own['epsilon']:.3f}")
