"""The departures of Fed-HeLLo's released code, each switched on by itself."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter

import pytest
from promises import same
from stand_ins import Cast, cast, layers_of, run

from fedquilt.allocate.importance import layer_weights
from fedquilt.allocate.layers import counts, draw, odds
from fedquilt.config.arguments import arguments
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.methods.fed_hello import fed_hello
from fedquilt.methods.released import fed_hello_released, shuffled

BUDGETS = {0: 6, 1: 9, 2: 12}
PRIOR = odds(counts("bottleneck", 12, [6, 9, 12]))
SCORES = [[float((layer * 7 + 3 * call) % 12) for layer in range(12)] for call in range(60)]
SEED = 3
OFF = {"reuse": "resample", "objective": "log-prob", "label_order": "ranked"}


def told(call: int) -> list[float]:
    return SCORES[call]


def expected(probabilities, number: int) -> dict[int, tuple[int, ...]]:
    """What clients draw in a round, from the odds and the seed alone."""
    rng = Rng(SEED).child("round", number)
    return {client: draw(probabilities, budget, rng.child("layers", client)) for client, budget in BUDGETS.items()}


def released(scene: Cast, **settings):
    settings = {"coverage": False, "warmup": 4, "refresh": 5, **OFF, **settings}
    return fed_hello_released(scene.federation, **settings)


@pytest.mark.parametrize("source", ["server", "clients"])
def test_with_every_departure_off_it_is_fed_hello(source):
    ends = []
    for factory, off in ((fed_hello, {}), (fed_hello_released, OFF)):
        scene = cast(server=told, scores=lambda client, call: SCORES[client + call])
        method = factory(scene.federation, warmup=4, refresh=5, scores_from=source, **off)
        ends.append([(layers_of(one), one.state) for one in run(method, scene)])
    for (layers, state), (others, other) in zip(*ends, strict=True):
        assert layers == others
        assert same(state, other)


@pytest.mark.parametrize("allocation", ["gd", "rgd"])
def test_without_scores_there_is_nothing_to_depart_from(allocation):
    scene = cast()
    plain = run(fed_hello(scene.federation, allocation=allocation), scene, num_rounds=3)
    done = run(fed_hello_released(scene.federation, allocation=allocation), scene, num_rounds=3)
    assert [layers_of(one) for one in done] == [layers_of(one) for one in plain]


@pytest.mark.parametrize("source", ["server", "clients"])
def test_scores_are_of_the_raw_logit(source):
    scene = cast(server=told, scores=lambda client, call: SCORES[call])
    run(released(scene, score="norm", objective="logit", scores_from=source), scene)
    asked = scene.federation.proxy.scorings if source == "server" else scene.clients[1].scorings
    assert asked == [("norm", "logit")] * 4


def test_its_settings_are_its_own_and_those_of_fed_hello():
    own, inner = (inspect.signature(factory).parameters for factory in (fed_hello_released, fed_hello))
    assert [*own] == [*inner, "reuse", "objective", "label_order"]
    given = arguments(fed_hello_released, {"warmup": 2, "reuse": "hold"}, prefix="method")
    assert (given["warmup"], given["reuse"], given["objective"]) == (2, "hold", "logit")
    with pytest.raises(ConfigError, match=r"method\.refresh = 0: must be at least 1"):
        arguments(fed_hello_released, {"refresh": 0}, prefix="method")


def test_t11_reuse_hold_keeps_the_drawn_layers_between_refreshes():
    """T11, the fork's behaviour"""
    scene = cast(server=told)
    sets = [layers_of(done) for done in run(released(scene, reuse="hold"), scene)]
    plain = [layers_of(done) for done in run(released(cast(server=told)), cast(server=told))]
    assert sets[:4] == plain[:4]
    for first, stop in ((4, 9), (9, 14), (14, 19)):
        assert all(one == sets[first] for one in sets[first:stop])
    assert len({one[0] for one in sets[4::5]}) > 1
    assert all(len(one[k]) == budget for one in sets for k, budget in BUDGETS.items())


def test_t11_reuse_reference_falls_back_to_the_prior_between_refreshes():
    """T11, the released code's behaviour"""
    scene = cast(server=told)
    done = run(released(scene, reuse="reference"), scene)
    for number, one in enumerate(done):
        fresh = number in (4, 9, 14, 19)
        assert layers_of(one) == expected(done[number - 1].state["probabilities"] if fresh else PRIOR, number)


def test_label_order_arbitrary_keeps_the_clusters_and_shuffles_their_weights():
    scores = [1.0] * 4 + [5.0] * 4 + [9.0] * 4
    seen = set()
    for seed in range(12):
        scene = cast(server=lambda call: scores)
        (*_, last) = run(released(scene, label_order="arbitrary"), scene, num_rounds=5, seed=seed)
        found = last.state["probabilities"]
        weights = tuple(round(found[layer] * 24) for layer in (0, 4, 8))
        assert sorted(weights) == [1, 2, 3]
        assert found == [weight / 24 for weight in weights for _ in range(4)]
        seen.add(weights)
        again = run(released(cast(server=lambda call: scores), label_order="arbitrary"), scene, num_rounds=5, seed=seed)
        assert again[-1].state["probabilities"] == found
    assert len(seen) > 2
    ranked = run(released(cast(server=lambda call: scores)), cast(), num_rounds=5)[-1].state["probabilities"]
    assert [round(ranked[layer] * 24) for layer in (0, 4, 8)] == [1, 2, 3]


def test_shuffled_weights_keep_the_clusters_and_lose_the_order():
    weights = layer_weights([0.1, 0.2, 5.0, 5.1, 9.0])
    seen = Counter(shuffled(weights, Rng(seed)) for seed in range(600))
    assert len(seen) == 6
    assert all(a == b and c == d and len({a, c, e}) == 3 for a, b, c, d, e in seen)
    assert all(abs(number - 100) < 40 for number in seen.values())
    assert shuffled(weights, Rng(5)) == shuffled(weights, Rng(5))


@pytest.mark.parametrize(
    "settings", [{"reuse": "hold"}, {"label_order": "arbitrary"}, {"reuse": "reference"}, {"objective": "logit"}]
)
def test_the_state_resumes_in_the_middle_of_an_interval(settings):
    scene = cast(server=lambda call: SCORES[1])
    whole = run(released(scene, **settings), scene)
    half = run(released(scene, **settings), scene, num_rounds=7)
    rest = run(released(scene, **settings), scene, state=half[-1].state, start=7)
    assert [layers_of(one) for one in itertools.chain(half, rest)] == [layers_of(one) for one in whole]
    assert same(rest[-1].state, whole[-1].state)
