"""FedCoT in rounds of tiny random models: what is written, learned and sent, resume, and both engines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from schemes import config, end, over_flower, played, same, travelled

from fedquilt.core.errors import ConfigError, TrainingError
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.core.texts import unpack_texts
from fedquilt.core.types import Order
from fedquilt.distill.contrast import rationale_and_label_loss
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.rationales import Rationales, labelled, rationale_loss_of
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.plan import plan

SMALL = {"candidates": 6, "path_tokens": 6, "path_bytes": 24}


def private(**method: Any) -> Any:
    server = {
        "model": {"name": "tiny:llama?layers=2&width=24", "task": "causal-lm", "max_length": 48},
        "data": {"source": "arithmetic:blank?train=20&test=4"},
        "share": "private",
    }
    return config("fedcot", {"server": server}, questions="private", **SMALL, **method)


def said(experiment: Experiment, path: str) -> Experiment:
    """The experiment whose server writes this path to every question."""
    server = experiment.federation.server
    assert server is not None

    class Writer:
        def complete(self, order: Order, memory: Any, prompts: Any, **how: Any) -> list[str]:
            return [path] * len(prompts)

        def __getattr__(self, name: str) -> Any:
            return getattr(server.worker, name)

    federation = replace(experiment.federation, server=replace(server, worker=Writer()))
    return replace(experiment, federation=federation, method=experiment.make_method(federation)).modelled()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(private(), tmp_path_factory.mktemp("fedcot") / "run")


def test_a_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    state, _ = end(whole)
    assert state["server"]["round"] == 2
    assert state["asked"] == {}
    again = shutil.copytree(whole, tmp_path / "again")
    resume(again, back_to=1)
    assert same(end(whole), end(again))


def test_flower_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    assert same(end(over_flower(private(), tmp_path))[0], end(whole)[0])


def test_the_loss_by_hand() -> None:
    """One half of the mean loss per token of ``so `` and one half of that of ``12`` and the end token."""
    client = build(config("fedcot")).clients[0]
    written = Rationales(["1 + 2 = ", "3"], ["so 12", "7"], [3, 0])

    def look(lent: Any) -> None:
        columns, labels = labelled(lent, written)
        found = rationale_loss_of(lent.bench.forward, columns, labels, torch.arange(2), 0.25)
        logits, wanted = lent.bench.forward(columns)
        steps = -logits[:, :-1].log_softmax(-1).gather(-1, wanted[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        first, second = (steps[row][wanted[row, 1:] != -100] for row in range(2))
        assert (len(first), len(second)) == (6, 2)  # bytes and the end token
        rationale, label = first[:3].mean() / 2, (first[3:].mean() + second.mean()) / 2
        torch.testing.assert_close(found, 0.25 * rationale + 0.75 * label)

    client.lending(Order({}), None, look)
    parts = Likelihood(torch.tensor([-6.0]), torch.tensor([3])), Likelihood(torch.tensor([-1.0]), torch.tensor([2]))
    assert rationale_and_label_loss(*parts, 0.25).item() == pytest.approx(0.25 * 2 + 0.75 * 0.5)


def test_clients_learn_what_the_server_writes_and_the_server_does_not() -> None:
    experiment = build(config("fedcot", **SMALL))
    nothing, something, other = (played(said(experiment, path)) for path in ("", "so 12", "so 13"))
    alone = played(build(config("lada", direction="none")))
    assert same(nothing["params"], alone["params"])
    for left, right in ((something, nothing), (other, something)):
        assert not same(left["params"], right["params"])
    start = experiment.method.init(experiment.rng.child("init"))
    assert same(something["server"]["params"], start["server"]["params"])
    without = played(said(build(config("fedcot", transfer=0.0, **SMALL)), "so 12"))
    assert same(without["params"], alone["params"])


def test_what_travels_is_public_and_its_bytes_follow_the_formula() -> None:
    experiment = said(build(config("fedcot", average=False, **SMALL)), "it is 12, so 7")
    server = experiment.federation.server
    assert server is not None
    planned = plan(config("fedcot", average=False, **SMALL))
    for (name, order, reply), one in zip(travelled(experiment), planned, strict=True):
        assert name == "fit"
        assert (one.bytes_down, one.bytes_up) == (num_bytes(order.params), num_bytes(reply.params))
        questions = unpack_texts(order.params, "rationale.questions")
        assert set(questions) <= set(server.questions.texts)
        assert order.params["rationale.starts"].tolist() == [13] * 6
        longest = max(len(text.encode()) for text in questions)
        assert num_bytes(order.params) == 6 * (longest + 4 + 24 + 4 + 4)
        assert reply.params == {}


def test_private_questions_travel_only_where_the_run_file_lets_them() -> None:
    experiment = build(private())
    seen = travelled(experiment)
    assert [name for name, _, _ in seen] == ["questions"] * 3 + ["fit"] * 3
    for one, (_, _, reply), (_, order, trained) in zip(plan(private()), seen[:3], seen[3:], strict=True):
        assert one.bytes_up == num_bytes(reply.params) + num_bytes(trained.params)
        assert num_bytes(reply.params) == 6 * (24 + 4)
        texts = {name: tensor for name, tensor in order.params.items() if name.startswith("rationale.")}
        assert one.bytes_down == num_bytes(order.params)
        assert num_bytes(texts) == 6 * (24 + 4 + 24 + 4 + 4)
        asked = unpack_texts(reply.params, "rationale.questions")
        assert asked == unpack_texts(order.params, "rationale.questions")
        client = experiment.clients[reply.client]
        assert len(asked) == 6
        assert sum(map(bool, asked)) == min(6, client.profile.num_examples)
        own = client.own_prompts(1000, Rng(1))
        assert {text[:20] for text in asked} <= {text[:20] for text in own}
    with pytest.raises(ConfigError, match=r"method\.questions = 'private': server\.share = 'public' does not let"):
        build(config("fedcot", questions="private"))
    with pytest.raises(TrainingError, match=r"server\.share = 'public' does not let out"):
        build(config("fedcot")).clients[0].own_prompts(1, Rng(1))
