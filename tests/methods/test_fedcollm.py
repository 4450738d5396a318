"""FedCoLLM in rounds of tiny random models: what is averaged, what is distilled, resume, and both engines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from schemes import changed, config, end, over_flower, played, same

from fedquilt.core.errors import ConfigError
from fedquilt.core.server import server_order
from fedquilt.core.types import Order, Reply
from fedquilt.experiment import build, resume, run
from fedquilt.methods import METHODS
from fedquilt.record import read_rounds

SMALL = {"candidates": 6, "k": 8, "answer_tokens": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config("fedcollm", **SMALL), tmp_path_factory.mktemp("fedcollm") / "run")


def test_a_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    state, memories = end(whole)
    assert state["server"]["round"] == 2
    assert not any(memories.values())
    for line in read_rounds(whole):
        assert line["state"].keys() == {"server_loss", "llama-1x16_loss", "gemma-2x16_loss"}
    again = shutil.copytree(whole, tmp_path / "again")
    resume(again, back_to=1)
    assert same(end(whole), end(again))


def test_flower_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    assert same(end(over_flower(config("fedcollm", **SMALL), tmp_path))[0], end(whole)[0])


def test_without_distillation_students_and_server_fine_tune_on_public_answers() -> None:
    """The averaged student, then the server's model, by hand: posed the drawn questions, each from its own stream."""
    experiment = build(config("fedcollm", distil=0.0, **SMALL))
    federation = experiment.federation
    server = federation.server
    assert server is not None
    state = played(experiment)
    averaged = played(build(config("lada", direction="none")))["params"]
    start = experiment.method.init(experiment.rng.child("init"))["server"]
    order = server_order(start, "learn")
    numbers = server_order(start, "offer").rng.child("questions").numpy().permutation(20)[:6]
    assert server.questions.answers is not None
    asked, answers = zip(
        *((server.questions.texts[n], server.questions.answers[n]) for n in sorted(numbers)), strict=True
    )
    by_hand = server.worker.posing(asked, answers).fit(order, {}, range(2)).params
    assert same(state["server"]["params"], by_hand)
    for name, layout in federation.layouts.items():
        own = {tensor: averaged[f"{name}/{tensor}"] for tensor in layout.depth}
        given = Order(own, round=0, rng=order.rng.child("student", name))
        by_hand = server.students[name].posing(asked, answers).fit(given, {}, range(layout.num_layers)).params
        assert same({tensor: state["params"][f"{name}/{tensor}"] for tensor in layout.depth}, by_hand)


def test_both_learn_from_the_other() -> None:
    plain = played(build(config("fedcollm", distil=0.0, **SMALL)))
    mutual = played(build(config("fedcollm", distil=1.0, **SMALL)))
    warm = played(build(config("fedcollm", distil=1.0, temperature=2.0, **SMALL)))
    for one, other in ((plain, mutual), (mutual, warm)):
        for names in (one["params"], one["server"]["params"]):
            assert names
        assert changed(one["params"], other["params"], one["params"])
        assert changed(one["server"]["params"], other["server"]["params"], one["server"]["params"])
    assert {name.split("/")[0] for name in changed(plain["params"], mutual["params"], plain["params"])} == {
        *("llama-1x16", "gemma-2x16")
    }


def test_equal_models_do_not_move_by_distillation() -> None:
    """The students are the server's own model: over the whole vocabulary the divergence has no gradient, and a single
    step is that of the cross-entropy alone."""
    once = {"training": {"steps": 1, "batch_size": 4, "learning_rate": 0.01}}
    experiment = build(config("fedcollm", once))
    server, names = experiment.federation.server, tuple(experiment.federation.layouts)
    assert server is not None
    federation = replace(
        experiment.federation,
        server=replace(server, students=dict.fromkeys(names, server.worker)),
        layouts=dict.fromkeys(names, server.layout),
        initial=dict.fromkeys(names, server.initial),
    )
    methods = [METHODS["fedcollm"](federation, distil=weight, candidates=6, k=1000) for weight in (0.0, 1.0, 1000.0)]
    state = methods[0].init(experiment.rng.child("init"))
    own = state["server"]["params"]
    state["params"] = {f"{name}/{tensor}": value for name in names for tensor, value in own.items()}
    plain, mutual, strong = (
        one.exchanges[0].merge(state, iter([Reply(0, own, 1.0)]))["server"]["params"] for one in methods
    )
    moved = sum((plain[name] - own[name]).abs().sum() for name in own)
    assert moved > 0.1
    assert sum((plain[name] - mutual[name]).abs().sum() for name in own) < 1e-2 * moved
    assert sum((plain[name] - strong[name]).abs().sum() for name in own) < 0.1 * moved


def test_public_questions_need_answers(tmp_path: Path) -> None:
    file = tmp_path / "asked.csv"
    file.write_text("text\n1 + 1 = \n2 + 2 = \n", encoding="utf-8")
    server = {
        "model": {"name": "tiny:llama?layers=2&width=24", "task": "causal-lm", "max_length": 48},
        "data": {"source": str(file)},
    }
    with pytest.raises(ConfigError, match=r"'fedcollm' trains on public answers, and the questions of server\.data"):
        build(config("fedcollm", {"server": server}))
