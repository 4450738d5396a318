"""Whole runs of the Fed-HeLLo paper's settings, without training: who is asked for which layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from stand_ins import cast, layers_of, run

from fedquilt.allocate.layers import counts, draw, odds
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Profile, Turn
from fedquilt.methods.fed_hello import fed_hello
from fedquilt.methods.released import fed_hello_released

PRIOR = odds(counts("bottleneck", 12, [6, 9, 12]))


@pytest.mark.parametrize(("reuse", "expected"), [("resample", 450), ("reference", 9)])
def test_s50_e50_of_500_rounds_has_nine_refreshes(reuse, expected):
    """Warm-up of 50 rounds, a refresh every 50. The released code used its Fisher odds in 9 of 500 rounds (1.8 %); kept
    in force between refreshes they serve in 450.
    """
    # scores whose odds differ from the prior's, and from those of the refresh before
    scene = cast(budgets=(6,), sizes=(1,), rounds=500, server=lambda call: [float((i + call) % 12) for i in range(12)])
    federation = replace(
        scene.federation,
        profiles=tuple(Profile(id, 1, "stand-in", Budget(budget), "toy") for id, budget in enumerate((6, 9, 12))),
    )
    method = fed_hello_released(federation, reuse=reuse, label_order="ranked", smoothing=0.0, coverage=False)
    done = run(method, scene, cohort=lambda number: federation.profiles[:1])
    refreshed = sorted({one.state["refreshed"] for one in done} - {None})
    assert refreshed == list(range(50, 500, 50))
    assert len(scene.federation.proxy.scorings) == 9
    used = 0
    for before, one in pairwise(done):
        rng = Rng(3).child("round", one.number).child("layers", 0)
        by_prior, fisher = draw(PRIOR, 6, rng), before.state["probabilities"]
        by_fisher = None if fisher is None else draw(fisher, 6, rng)
        fresh = one.number in refreshed
        in_force = fisher is not None and (reuse == "resample" or fresh)
        assert layers_of(one)[0] == (by_fisher if in_force else by_prior)
        used += in_force
    assert used == expected


@pytest.mark.parametrize(
    ("budget", "fixture"), [(6, {3: 0.626, 2: 0.477, 1: 0.271}), (9, {3: 0.875, 2: 0.755, 1: 0.496})]
)
def test_t3_inclusion_through_the_whole_method(budget, fixture):
    """T3 in a method: how often a client of the paper's budgets is asked for a layer of weight 3, 2 or 1."""
    scene = cast(budgets=(6, 9, 12))
    method = fed_hello(scene.federation, allocation="rgd", coverage=False)
    state, client = method.init(Rng(0)), {6: 0, 9: 1}[budget]
    times: Counter[int] = Counter()
    for number in range(3000):
        turn = Turn(number, scene.federation.profiles[client : client + 1], Rng(0).child("round", number))
        times.update(method.exchanges[0].ask(state, turn)[client].settings["layers"])
    weights = np.array(counts("bottleneck", 12, [6, 9, 12]))
    share = np.array([times[layer] / 3000 for layer in range(12)])
    for weight, probability in fixture.items():
        assert share[weights == weight].mean() == pytest.approx(probability, abs=0.015)
