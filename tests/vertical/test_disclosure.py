"""What leaves a party is clipped and noised: in every message of every method, in the same way twice, and counted."""

from __future__ import annotations

import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from parties import FILE, noised_config, noises_of, parties_config

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, GRADIENTS, PROTOTYPES, Disclosure
from fedquilt.core.errors import ConfigError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Failure, Order, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.check import check
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.methods import METHODS, traits_of
from fedquilt.privacy.account import gaussian_epsilon
from fedquilt.record import Record, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes
from fedquilt.report.disclosure import disclosure_words
from fedquilt.report.runs import read_run
from fedquilt.vertical.disclosure import (
    DOWN,
    UP,
    Side,
    kind_of,
    order_released,
    reply_released,
    vectors_of,
    with_disclosure,
)

SENDING = [name for name in METHODS if traits_of(name).vertical and traits_of(name).discloses]


def side(kinds: Any = UP, *, key: int = 1, **wanted: Any) -> Side:
    return Side(Disclosure(**wanted), Rng(key), kinds)


def crossed(config: Config, folder: Path) -> list[tuple[str, Order, Reply]]:
    """Every message of a run, as it travels."""
    moved: list[tuple[str, Order, Reply]] = []

    class Recording(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            for reply in super().send(exchange, orders):
                moved.append((exchange.name, orders[reply.client], reply))
                yield reply

    connect = EMBEDDED._replace(make=lambda made, key, memories, progress: Recording(made.clients, memories))
    run(config, folder, connect=connect)
    return moved


def file_with(name: str, **disclosure: Any) -> Config:
    return parse({**tomllib.loads(FILE), "method": {"name": name}, "disclosure": disclosure})


# Every message ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SENDING)
def test_bounds_hold_in_every_message_and_methods_send_what_their_traits_say(name, tmp_path):
    """With noise that is next to nothing, every row of every message is within its bound."""
    clip = 1e-4
    table = {key: 1e-9 for key in noises_of(name) if key.endswith("noise") and key != "count_noise"}
    moved = crossed(file_with(name, gradient_clip=clip, **table), tmp_path / "run")
    kinds = set()
    for _, order, reply in moved:
        for params, names in ((order.params, DOWN), (reply.params, UP)):
            kinds |= {kind_of(one, names) for one in params}
        for one, tensor in order.params.items():
            if kind_of(one, DOWN) == GRADIENTS:
                minibatches, rows = order.params["embeddings"].shape[:2]
                bound = clip / rows if one == "embeddings" else clip * minibatches
            elif kind_of(one, DOWN) != COUNTS:
                bound = 1.0
            else:
                continue
            assert tensor.norm(dim=-1).max() <= bound * 1.001
        for one, tensor in reply.params.items():
            assert kind_of(one, UP) == COUNTS or tensor.norm(dim=-1).max() <= 1.001
    assert kinds == set(traits_of(name).discloses)
    gradients = [order.params["embeddings"] for exchange, order, _ in moved if exchange == "follow"]
    longest = max(float(sent.norm(dim=-1).max()) * sent.shape[1] for sent in gradients)
    assert longest == pytest.approx(clip, rel=1e-3), "honest gradients are longer, so the clip was at work"


@pytest.mark.parametrize("name", SENDING)
def test_with_noise_no_message_is_what_it_was(name, tmp_path):
    """In the first message, before training differs, all that leaves a party differs from a run without noise."""
    (_, _, exact), *_ = crossed(parties_config(name), tmp_path / "exact")
    (_, order, noised), *_ = crossed(noised_config(name), tmp_path / "noised")
    assert exact.params.keys() == noised.params.keys()
    for tensor, one in noised.params.items():
        assert not torch.equal(one, exact.params[tensor]), tensor
    told = noised.params
    torch.testing.assert_close(told["embeddings"].norm(dim=1), torch.ones(len(told["embeddings"])), atol=1e-4, rtol=0)
    if "counts" in told:
        assert (told["counts"] >= 0).all()
        assert torch.equal(told["counts"], told["counts"].round())
        torch.testing.assert_close(told["prior"], (told["counts"] + 1) / (told["counts"] + 1).sum())
    assert order.settings["vectors"]["up"]["embeddings"] == len(told["embeddings"])


def test_hybrid_without_classifiers_sends_no_prototypes(tmp_path):
    settings = {"labels": False}
    moved = crossed(parties_config("vfl-hssl", **settings), tmp_path / "run")
    up = {kind_of(one, UP) for _, _, reply in moved for one in reply.params}
    down = {kind_of(one, DOWN) for _, order, _ in moved for one in order.params}
    assert up | down == set(traits_of("vfl-hssl", settings).discloses)
    assert PROTOTYPES not in up


def test_off_a_method_is_what_it_was():
    made = build(parties_config("proto-evfl"))
    vertical = made.federation.vertical
    assert vertical is not None
    assert with_disclosure(made.method, Disclosure(), vertical) is made.method
    assert made.config.disclosure == Disclosure()


# Noise --------------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_is_asked_for():
    down = {"embeddings": torch.zeros(5, 20, 64), "prototypes": torch.zeros(40, 64)}
    sent = order_released(down, side(DOWN, gradient_clip=0.5, gradient_noise=3.0), 0, 10)
    assert float(sent["embeddings"].std()) == pytest.approx(3.0 * 0.5 / 20, rel=0.05)
    assert float(sent["prototypes"].std()) == pytest.approx(3.0 * 0.5 * 5, rel=0.05)
    sent = reply_released({"prototypes": torch.zeros(100, 64)}, side(prototype_noise=0.7))
    assert float(sent["prototypes"].std()) == pytest.approx(0.7, rel=0.05)
    counts = torch.full((2000,), 100.0)
    sent = reply_released({"counts": counts, "prior": counts / counts.sum()}, side(count_noise=4.0))
    assert float(sent["counts"].std()) == pytest.approx(4.0, rel=0.06)
    even = torch.full((100,), 0.01)
    sent = order_released({"prior": even}, side(DOWN, count_noise=0.5), 0, 1000)
    assert float(sent["prior"].std()) == pytest.approx(0.5 / 1000, rel=0.3)
    assert float(sent["prior"].sum()) == pytest.approx(1.0, abs=1e-5)


def test_longer_gradients_are_scaled_down_and_shorter_ones_stay():
    rows = torch.tensor([[[3.0, 4.0], [0.03, 0.04]]])
    sent = order_released({"embeddings": rows}, side(DOWN, gradient_clip=1.0), 0, 10)["embeddings"]
    torch.testing.assert_close(sent, torch.tensor([[[0.3, 0.4], [0.03, 0.04]]]))


def test_the_same_content_gets_the_same_noise_and_other_content_or_keys_another():
    rows = torch.eye(4)
    one, again = (reply_released({"embeddings": rows}, side(embedding_noise=0.5))["embeddings"] for _ in range(2))
    assert torch.equal(one, again)
    other = reply_released({"embeddings": rows}, side(embedding_noise=0.5, key=2))["embeddings"]
    moved = rows.clone()
    moved[3] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    changed = reply_released({"embeddings": moved}, side(embedding_noise=0.5))["embeddings"]
    assert not torch.isclose(one, other).any(1).all()
    assert not torch.isclose(one[:3], changed[:3]).all(1).any(), "a difference of two answers holds no noise"


def test_noise_is_drawn_from_a_seed_too_long_to_be_tried(monkeypatch):
    drawn = set()
    for seed in (5, 5 + 2**32, 5 + 2**127):  # torch takes the first 32 bits of a seed
        monkeypatch.setattr(Rng, "integer", lambda self, bits=63, seed=seed: seed % (1 << bits))
        drawn.add(tuple(side(embedding_noise=0.5).noise("embeddings", torch.zeros(3), 1.0).tolist()))
    assert len(drawn) == 3


def test_a_class_without_rows_is_mostly_told_as_one():
    counts = torch.zeros(5000)
    told = reply_released({"counts": counts, "prior": counts}, side(count_noise=5.0))["counts"]
    assert 0.01 < float((told > 0).float().mean()) < 0.04  # beyond two standard deviations


def test_what_all_parties_are_sent_has_the_same_noise_for_all():
    down = {"others": torch.nn.functional.normalize(torch.ones(6, 2, 4), dim=-1), "prior": torch.full((4,), 0.25)}
    wanted = side(DOWN, embedding_noise=0.5, count_noise=1.0)
    one, other = (order_released(down, wanted, client, 10) for client in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in down)
    assert torch.equal(one["others"][:, 0], down["others"][:, 0]), "what others embedded was noised when it left them"
    assert not torch.isclose(one["others"][:, 1], down["others"][:, 1]).all(1).any()
    gradient = {"embeddings": torch.zeros(1, 6, 4)}
    wanted = side(DOWN, gradient_clip=1.0, gradient_noise=1.0)
    one, other = (order_released(gradient, wanted, client, 10) for client in (0, 1))
    assert not torch.equal(one["embeddings"], other["embeddings"])


def test_a_tensor_of_an_unknown_name_does_not_leave():
    with pytest.raises(TrainingError, match="would send the tensor 'secrets', and how to clip it is not known"):
        reply_released({"secrets": torch.ones(2)}, side(embedding_noise=0.5))


@pytest.mark.parametrize("test_key", [11, None])
def test_a_run_goes_on_to_the_same_bits(test_key, tmp_path):
    folder = run(noised_config("proto-evfl", test_key=test_key), tmp_path / "run")
    again = shutil.copytree(folder, tmp_path / "again")
    resume(again, back_to=2)
    ended = [Record.open(one).load_checkpoint()[1] for one in (folder, again)]
    assert tree_to_bytes(ended[0]) == tree_to_bytes(ended[1])
    lines = [read_rounds(one)[-1] for one in (folder, again)]
    assert lines[0]["disclosed"] == lines[1]["disclosed"]
    assert lines[0]["evaluation"] == lines[1]["evaluation"]


def test_without_a_test_key_every_run_and_party_has_a_key_of_its_own(tmp_path):
    keys = set()
    for number in range(2):
        folder = run(noised_config("vfl-split", test_key=None), tmp_path / str(number))
        _, state, memories = Record.open(folder).load_checkpoint()
        keys |= {state["disclosure"], *(memory["disclosure"] for memory in memories.values())}
    assert len(keys) == 8


# The account --------------------------------------------------------------------------------------------------------


def test_vectors_are_counted_as_they_leave():
    assert vectors_of({"embeddings": torch.zeros(2, 8, 4), "prototypes": torch.zeros(10, 4)}, DOWN) == {GRADIENTS: 26}
    up = {"embeddings": torch.zeros(16, 4), "prior": torch.zeros(10), "counts": torch.zeros(10)}
    assert vectors_of({**up, "joint.head.bias": torch.zeros(10)}, UP) == {EMBEDDINGS: 16, COUNTS: 1, PROTOTYPES: 1}
    assert vectors_of({"others": torch.zeros(16, 3, 4)}, DOWN) == {EMBEDDINGS: 16}


def test_the_record_holds_the_epsilons_of_what_has_left(tmp_path):
    """16 aligned rows, four minibatches of 8 in each of 3 rounds, so every row is sent twice a round; 2 evaluations."""
    config = noised_config("proto-evfl", embedding_noise=40.0, gradient_noise=100.0)
    folder = run(config, tmp_path / "run")
    lines = read_rounds(folder)
    told = lines[-1]["disclosed"]
    tested = 40  # a fifth of 200 rows
    passive, active = told["parties"]["left"], told["parties"]["bottom"]
    assert passive["vectors"] == {EMBEDDINGS: 3 * 32 + 2 * tested, PROTOTYPES: 3 * 10, COUNTS: 1}
    assert (passive["exact"], passive["vectors_of_a_row"]) == ([], 6)
    assert passive["epsilon_of_a_row"] == pytest.approx(gaussian_epsilon(40.0, 6, 1e-5))
    # three parties are sent the gradients of 32 embeddings and 10 prototypes in each round, and all of them one prior
    assert active["vectors"] == {GRADIENTS: 3 * 3 * 42, COUNTS: 3}
    assert active["vectors_of_a_row"] == 3 * 6
    assert active["epsilon_of_a_row"] == pytest.approx(gaussian_epsilon(100.0, 18, 1e-5))
    squared = sum(count * (2 / noise) ** 2 for count, noise in ((378, 100.0), (3, 2.0)))
    assert active["epsilon"] == pytest.approx(gaussian_epsilon(2 / math.sqrt(squared), 1, 1e-5))
    assert lines[0]["disclosed"]["parties"]["left"]["vectors_of_a_row"] == 2
    # as the other parties tell the same numbers again, it is one prior, but for the first round, when none is told yet
    orders = [order.params for _, order, _ in crossed(config, tmp_path / "again")]
    assert len({tuple(params["prior"].tolist()) for params in orders if "prior" in params}) == 2
    words = disclosure_words(read_run(folder))
    assert "gradients clipped to 0.5, embeddings noised (40 times their bound)" in words
    assert "counts noised (2 rows)" in words
    assert "protects nothing against those who know the key" in words


def test_an_epsilon_worked_elsewhere(tmp_path):
    """Epsilon 1 at delta 1e-5 takes noise of 3.730631634 times the sensitivity: twice the bound, times sqrt(6)."""
    noise = 2 * 3.730631634 * math.sqrt(6)
    config = file_with("vfl-split", embedding_noise=noise, test_key=1)
    told = read_rounds(run(config, tmp_path / "run"))[-1]["disclosed"]["parties"]
    assert told["left"]["epsilon_of_a_row"] == pytest.approx(1.0, rel=1e-6)
    assert told["bottom"] == {
        "vectors": {GRADIENTS: 3 * 3 * 32},
        "exact": [GRADIENTS],
        "epsilon": None,
        "vectors_of_a_row": 18,
        "epsilon_of_a_row": None,
    }


def test_what_a_party_sent_counts_also_if_it_was_dropped(tmp_path):
    class Lost(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            for reply in super().send(exchange, orders):
                lost = reply.client == 1 and exchange.name == "embed" and orders[1].round == 1
                yield Failure(1, "lost on the way") if lost else reply

    connect = EMBEDDED._replace(make=lambda made, key, memories, progress: Lost(made.clients, memories))
    folder = run(noised_config("vfl-split"), tmp_path / "run", connect=connect)
    assert read_rounds(folder)[1]["exchanges"][0]["dropped"] == {"1": "lost on the way"}
    told = read_rounds(folder)[-1]["disclosed"]["parties"]
    assert told["right"]["vectors"] == told["left"]["vectors"]


# Wrong settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"gradient_noise": 0.5}, "is a multiple of gradient_clip, which is left out"),
        ({"gradient_clip": 0.0}, "disclosure.gradient_clip"),
        ({"embedding_noise": -0.1}, "disclosure.embedding_noise"),
        ({"embedding_noise": 1001.0}, "disclosure.embedding_noise"),
        ({"embedding_noise": 0.1, "delta": 1.0}, "disclosure.delta"),
        ({"embeddings": 0.1}, "disclosure.embeddings"),
    ],
)
def test_wrong_values_are_told(table, words):
    with pytest.raises(ConfigError) as caught:
        file_with("proto-evfl", **table)
    assert any(words in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("vfl-split", {"prototype_noise": 0.1}, "method.name = 'vfl-split' no prototypes leave a party"),
        ("vfl-split", {"count_noise": 0.1}, "method.name = 'vfl-split' no counts leave a party"),
        ("vfl-local", {"embedding_noise": 0.1}, "method.name = 'vfl-local' no embeddings leave a party"),
        ("proto-evfl", {"delta": 1e-6}, "disclosure.delta = 1e-06: only applies where something is noised"),
        ("proto-evfl", {"gradient_clip": 1.0, "test_key": 3}, "disclosure.test_key = 3: only applies where"),
    ],
)
def test_keys_without_effect_are_refused(name, table, words):
    (problem,) = check(file_with(name, **table))
    assert words in problem


def test_numbers_cannot_hide_what_an_active_party_without_labels_learns():
    raw = tomllib.loads(FILE)
    raw["parties"][-1]["labelled"] = False
    (problem,) = check(parse({**raw, "method": {"name": "proto-evfl"}, "disclosure": {"count_noise": 1.0}}))
    assert problem.startswith("disclosure.count_noise = 1: the active party does not know the classes")


def test_clipping_alone_promises_nothing(tmp_path):
    folder = run(file_with("vfl-split", gradient_clip=0.1), tmp_path / "run")
    assert "disclosed" not in read_rounds(folder)[-1]
    words = disclosure_words(read_run(folder))
    assert words.endswith("Without noise there is no differential privacy.")
    assert words.startswith("before it left a party, this was done: gradients clipped to 0.1; exact: ")
