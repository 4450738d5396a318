"""What pretrainings share: settings, folder, the loop, and recipe.toml."""

from __future__ import annotations

import math
import tomllib
from itertools import pairwise

import pytest
import torch
from torch import nn

from fedquilt.core.errors import ConfigError, RunError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.pretrain.recipe import check_settings, empty_folder, recipe_text, trained


def line():
    with Rng(0).scope():
        return nn.Linear(3, 1)


def squared(model, target=1.0):
    while True:
        yield (model(torch.ones(1, 3)) - target).square().mean()


def train(model, losses, steps=50, rate=0.05, progress=None):
    return trained(model, losses, steps=steps, learning_rate=rate, weight_decay=0.0, warmup=0.1, progress=progress)


def test_the_loop_lowers_the_loss_and_tells_every_step():
    model, seen = line(), []
    history = train(model, squared(model), progress=lambda *told: seen.append(told))
    assert len(history) == 50
    assert history[-1] < 0.01 * history[0]
    assert seen == [(step, 50, loss) for step, loss in enumerate(history, start=1)]


def test_no_more_losses_are_asked_for_than_there_are_steps():
    model, asked = line(), []

    def losses():
        for loss in squared(model):
            asked.append(1)
            yield loss

    train(model, losses(), steps=3)
    assert len(asked) == 3


def test_the_rate_rises_and_falls_to_zero():
    model = nn.Linear(1, 1, bias=False)
    weights = [model.weight.item()]
    # a loss whose gradient is always 1: every step of Adam is as long as the learning rate
    train(
        model,
        (model.weight.sum() for _ in range(40)),
        steps=40,
        rate=0.1,
        progress=lambda *_: weights.append(model.weight.item()),
    )
    moved = [before - after for before, after in pairwise(weights)]
    assert moved[0] == pytest.approx(0.025, rel=1e-3)
    assert max(moved) == pytest.approx(0.1, rel=1e-3)
    assert moved.index(max(moved)) in (3, 4)
    assert 0 < moved[-1] < 0.001
    assert all(later < earlier for earlier, later in pairwise(moved[5:]))


def test_a_loss_that_is_no_number_stops_the_training():
    model = line()
    with pytest.raises(TrainingError, match=r"loss is nan at step 0: lower the learning rate \(it is 0.05\)"):
        train(model, squared(model, target=math.nan))


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        check_settings({"steps": 0, "batch_size": 8, "learning_rate": math.inf, "warmup": 1.0, "length": 4})
    assert caught.value.problems == (
        "steps is 0; allowed: a whole number from 1",
        "learning_rate is inf; allowed: a number above 0",
        "warmup is 1.0; allowed: a share of the steps, from 0 to below 1",
        "length is 4; allowed: a whole number from 8",
    )


def test_a_folder_is_made_and_one_in_use_is_left_alone(tmp_path):
    assert list(empty_folder(tmp_path / "new" / "one").iterdir()) == []
    assert empty_folder(tmp_path / "new" / "one").is_dir()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="is not empty; choose another folder"):
        empty_folder(tmp_path)
    with pytest.raises(RunError, match=r"cannot write to .*; choose another folder"):
        empty_folder(tmp_path / "mine.txt" / "below")
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_recipe_is_toml_again():
    text = recipe_text("fedquilt x", {"steps": 3, "rate": 2e-3, "fonts": ("a", "b")}, {"loss": 0.5})
    read = tomllib.loads(text)
    assert read["command"] == "fedquilt x"
    assert read["torch"] == torch.__version__
    assert read["settings"] == {"steps": 3, "rate": 0.002, "fonts": ["a", "b"]}
    assert read["result"] == {"loss": 0.5}
