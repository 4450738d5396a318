"""FedMKT in rounds of tiny random models: who learns what of whom, what travels, resume, and both engines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from schemes import changed, config, end, over_flower, played, same, travelled

from fedquilt.core.checks import reply_check
from fedquilt.core.params import num_bytes
from fedquilt.core.texts import unpack_texts
from fedquilt.distill import predictions as p
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.plan import plan
from fedquilt.record import read_rounds

SMALL = {"candidates": 6, "k": 8, "answer_tokens": 10}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config("fedmkt", **SMALL), tmp_path_factory.mktemp("fedmkt") / "run")


def test_each_client_keeps_its_own_adapters_and_a_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    state, memories = end(whole)
    assert state["server"]["round"] == 2
    assert [sorted(own) for own in memories.values()] == [["params"]] * 3
    for line in read_rounds(whole):
        assert line["state"].keys() == {"server_loss", "server_learned"}
        (exchange,) = line["exchanges"]
        assert all(0 <= moved["metrics"]["learned"] <= 1 for moved in exchange["clients"].values())
    again = shutil.copytree(whole, tmp_path / "again")
    resume(again, back_to=1)
    assert same(end(whole), end(again))


def test_flower_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    assert same(end(over_flower(config("fedmkt", **SMALL), tmp_path))[0], end(whole)[0])


def test_what_travels_is_public_and_bounded() -> None:
    """Down go public texts and predictions along them, up predictions alone; both in the client's own tokens."""
    made = config("fedmkt", **SMALL)
    experiment = build(made)
    server = experiment.federation.server
    assert server is not None
    assert server.questions.answers is not None
    seen = travelled(experiment)
    assert len(seen) == 3
    for (_, order, reply), planned in zip(seen, plan(made), strict=True):
        texts = {name: unpack_texts(order.params, f"public.{name}") for name in ("questions", "answers")}
        assert set(texts["questions"]) <= set(server.questions.texts)
        assert set(texts["answers"]) <= set(server.questions.answers)
        longest = sum(max(len(text.encode()) for text in own) for own in texts.values())
        assert num_bytes(order.params) == 6 * (longest + 4 + 4 + 10 * 8 * 8 + 4)
        assert num_bytes(reply.params) == 6 * (10 * 8 * 8 + 4)
        assert reply.params.keys() == {f"public.own.{part}" for part in ("tokens", "log_probs", "losses")}
        assert planned.bytes_up == num_bytes(reply.params)
        assert order.params["public.server.tokens"].max() < order.settings["num_tokens"]


def test_what_is_out_of_bounds_is_dropped() -> None:
    experiment = build(config("fedmkt", **SMALL))
    (exchange,), check = experiment.method.exchanges, reply_check(experiment.federation.profiles)
    _, order, reply = travelled(experiment)[0]
    assert check(exchange, order, reply) is None
    for name, value, said in (
        ("tokens", 10**6, "must be from -1 to"),
        ("log_probs", 5.0, "must be from"),
        ("losses", -1.0, "must be from 0 to"),
    ):
        broken = {**reply.params, f"public.own.{name}": torch.full_like(reply.params[f"public.own.{name}"], value)}
        assert said in str(check(exchange, order, replace(reply, params=broken)))


def test_each_side_learns_only_from_the_side_that_knows_an_answer_better() -> None:
    """Clients whose server knows nothing train as alone, and so does a server whose clients know nothing."""
    experiment = build(config("fedmkt", average=True, **SMALL))
    (exchange,) = experiment.method.exchanges
    alone = played(build(config("lada", direction="none")))
    state = played(experiment)
    told = state["told"]
    assert 0 <= told["server_learned"] <= 1

    def told_of(losses: float, name: str):
        """The exchange in which one side says that all its answers have this loss."""

        def work(client, order, memory):
            said = {**order.params}
            if name == "server":
                said["public.server.losses"] = torch.full_like(said["public.server.losses"], losses)
            reply, after = exchange.work(client, replace(order, params=said), memory)
            if name == "own":
                reply.params["public.own.losses"][:] = losses
            return reply, after

        return experiment.method._replace(exchanges=(exchange._replace(work=work),))

    ignorant, knowing = (played(experiment, told_of(loss, "server")) for loss in (9000.0, 0.0))
    assert same(ignorant["params"], alone["params"])
    assert len(changed(knowing["params"], alone["params"], alone["params"])) > 4
    ignored, heard = (played(experiment, told_of(loss, "own")) for loss in (9000.0, 0.0))
    assert (ignored["told"]["server_learned"], heard["told"]["server_learned"]) == (0.0, 1.0)
    assert same(ignored["server"]["params"], alone["server"]["params"])
    assert not same(heard["server"]["params"], alone["server"]["params"])


def test_of_several_clients_the_best_one_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 1 says that it knows the second answer best, client 0 all others but the last, which the server keeps."""
    experiment = build(config("fedmkt", **SMALL))
    (exchange,) = experiment.method.exchanges
    state = experiment.method.init(experiment.rng.child("init"))
    replies = [reply for _, _, reply in travelled(experiment)]
    for reply, losses in zip(replies, (0.2, 0.1, 0.3), strict=True):
        reply.params["public.own.losses"][:] = losses
    replies[0].params["public.own.losses"][1] = 0.4
    replies[1].params["public.own.losses"][:] = 0.3
    replies[1].params["public.own.losses"][1] = 0.1
    for reply in replies:
        reply.params["public.own.losses"][5] = 9000.0
    kept, seen = p.merged, []

    def watched(best, other, where):
        seen.append(where.tolist())
        return kept(best, other, where)

    monkeypatch.setattr("fedquilt.methods.fedmkt.merged", watched)
    after = exchange.merge(state, iter(replies))
    assert after["told"]["server_learned"] == pytest.approx(5 / 6)
    assert seen == [[True, True, True, True, True, False], [False, True, False, False, False, False], [False] * 6]
