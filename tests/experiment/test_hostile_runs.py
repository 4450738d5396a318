"""One client that means harm in whole runs with the defaults: the run goes on, and the others' losses stay numbers."""

import importlib
import math
from dataclasses import replace

import pytest
import torch

from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.defence import bounds_of
from fedquilt.experiment.run import run
from fedquilt.record import Record, read_rounds


class Spoiled(LocalEngine):
    """The embedded engine, but what client 0 sends in the first round is what ``spoil`` makes of it."""

    spoil = staticmethod(lambda reply: reply)

    def send(self, exchange, orders):
        for reply in super().send(exchange, orders):
            yield self.spoil(reply) if reply.client == 0 and reply.round == 0 else reply


@pytest.fixture
def attacked(monkeypatch, config, tmp_path):
    """``attacked(spoil, *changes)``: the folder of a run with such a client."""

    def played(spoil, *changes, name="run"):
        monkeypatch.setattr(Spoiled, "spoil", staticmethod(spoil))
        monkeypatch.setattr(importlib.import_module("fedquilt.experiment.engine"), "LocalEngine", Spoiled)
        return run(config("clients.cohort=6", *changes), tmp_path / name)

    return played


def huge(value):
    return lambda reply: replace(reply, params={name: torch.full_like(t, value) for name, t in reply.params.items()})


FEW = [(), ("method.name=flexlora",), ("method.name=fedit", "aggregation.server_optimizer=adam")]
MORE = [(f"method.name={name}",) for name in ("fedra", "hetlora", "flora", "fedex-lora", "lora-fair", "full")]


@pytest.mark.parametrize("value", [1e20, 9e5])
@pytest.mark.parametrize("changes", [*FEW, *(pytest.param(more, marks=pytest.mark.slow) for more in MORE)], ids=str)
def test_one_huge_reply_leaves_all_later_losses_numbers_and_everybody_learning(attacked, changes, value):
    lines = read_rounds(attacked(huge(value), "rounds=3", *changes))
    (first,) = lines[0]["exchanges"]
    if value > 1e6:
        assert list(first["dropped"]) == ["0"]
        assert "holds 1e+20; it must be from -1e+06 to 1e+06" in first["dropped"]["0"]
    else:
        assert list(first["bounded"]) == ["0"]
        assert first["bounded"]["0"]["scale"] < 1e-3
    for line in lines:
        (moved,) = line["exchanges"]
        assert line is lines[0] or not moved["dropped"]
        for client in moved["clients"].values():
            assert math.isfinite(client["metrics"]["loss"])
            assert client["metrics"]["loss"] < 20
        assert sum(client["share"] for client in moved["clients"].values()) == pytest.approx(1)


SOON = ("method.warmup=1", "method.refresh=1")


@pytest.mark.parametrize(
    "changes",
    [("method.allocation=gd",), (*SOON, "method.allocation=fim", "method.scores_from=server", "data.proxy=20")],
    ids=str,
)
def test_scores_that_nobody_asked_for_change_no_bit(attacked, changes):
    def telling(reply):
        odd = {"score_0": 1e308, "score_1": -1.0, "score_2": 10**400, "rank": -1}
        return replace(reply, metrics={**reply.metrics, **odd})

    common = ("rounds=2", *changes)
    folders = [attacked(spoil, *common, name=f"run-{n}") for n, spoil in enumerate((telling, lambda reply: reply))]
    ends = [Record.open(folder).load_checkpoint()[1] for folder in folders]
    assert all(torch.equal(ends[0]["params"][name], tensor) for name, tensor in ends[1]["params"].items())
    assert ends[0].keys() == ends[1].keys()
    assert ends[0].get("scores") == ends[1].get("scores")
    assert not read_rounds(folders[0])[0]["exchanges"][0]["dropped"]


def test_no_bound_acts_among_honest_clients(attacked):
    lines = read_rounds(attacked(lambda reply: reply, "rounds=2"))
    assert all(line["exchanges"][0]["bounded"] == {} for line in lines)


def test_the_bounds_are_those_of_the_run_file_and_off_where_they_would_be_wrong(config):
    private = ("method.weighting=uniform", "privacy.mode=central")
    assert bounds_of(config()).max_norm_ratio == 10
    assert bounds_of(config()).max_weight_share is None
    assert not bounds_of(config("defence.max_norm_ratio=off")).compares
    assert not bounds_of(config(*private)).compares  # what a client may add must not depend on the others
    assert bounds_of(config("privacy.mode=local", private[0])).max_norm_ratio == 10
    assert bounds_of(config("defence.max_weight_share=0.3")).max_weight_share == 0.3
