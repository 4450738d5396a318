"""Fed-HeLLo: the schedule, and where scores come from."""

from __future__ import annotations

import itertools

import pytest
import torch
from promises import Setup, play, same
from small_federation import small
from stand_ins import Cast, cast, layers_of, run

from fedquilt.allocate.importance import layer_weights
from fedquilt.allocate.layers import counts, draw, gd_set, madow, odds
from fedquilt.config.arguments import arguments
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.methods.fed_hello import fed_hello

BUDGETS = {0: 6, 1: 9, 2: 12}
PRIOR = odds(counts("bottleneck", 12, [6, 9, 12]))
SCORES = [[float((layer * 7 + 3 * call) % 12) for layer in range(12)] for call in range(60)]
SEED = 3


def told(call: int) -> list[float]:
    return SCORES[call]


def drawn(probabilities, number: int, client: int, sampler=draw) -> tuple[int, ...]:
    """What client draws in a round, from the odds and the seed alone."""
    return sampler(probabilities, BUDGETS[client], Rng(SEED).child("round", number).child("layers", client))


def expected(probabilities, number: int, sampler=draw) -> dict[int, tuple[int, ...]]:
    return {client: drawn(probabilities, number, client, sampler) for client in BUDGETS}


def fim(scene: Cast, **settings):
    settings = {"allocation": "fim", "coverage": False, "warmup": 4, "refresh": 5, **settings}
    return fed_hello(scene.federation, **settings)


# Geometric ------------------------------------------------------------


@pytest.mark.parametrize("shape", ["triangle", "inverted-triangle", "bottleneck", "uniform"])
@pytest.mark.parametrize("base", ["input", "output"])
def test_gd_gives_every_client_the_set_of_its_budget_in_every_round(shape, base):
    scene = cast()
    done = run(fed_hello(scene.federation, allocation="gd", shape=shape, base=base), scene, num_rounds=3)
    sets = {client: gd_set(shape, 12, budget, base) for client, budget in BUDGETS.items()}
    assert [layers_of(one) for one in done] == [sets] * 3
    assert all(one.state.keys() == {"params"} for one in done)


@pytest.mark.parametrize("shape", ["triangle", "bottleneck"])
@pytest.mark.parametrize(("sampler", "function"), [("gumbel", draw), ("madow", madow)])
def test_rgd_draws_from_the_shapes_counts(shape, sampler, function):
    scene = cast()
    method = fed_hello(scene.federation, allocation="rgd", shape=shape, sampler=sampler, coverage=False)
    prior = odds(counts(shape, 12, [6, 9, 12]))
    for done in run(method, scene):
        assert layers_of(done) == expected(prior, done.number, function)


def test_the_odds_count_groups_and_not_clients():
    """Ten clients of budget 6 weigh as much as one of 12: the counts are over distinct budgets, as released."""
    scene = cast(budgets=(6, 6, 6, 6, 9, 12), sizes=(1,) * 6)
    (done,) = run(fed_hello(scene.federation, allocation="rgd", coverage=False), scene, num_rounds=1)
    rng = Rng(SEED).child("round", 0)
    assert layers_of(done) == {
        p.id: draw(PRIOR, p.budget.layers, rng.child("layers", p.id)) for p in scene.federation.profiles
    }


def test_neither_gd_nor_rgd_asks_for_scores():
    for allocation in ("gd", "rgd"):
        scene = cast(server=told)
        run(fed_hello(scene.federation, allocation=allocation), scene)
        assert scene.federation.proxy.scorings == []
        assert all(client.scorings == [] for client in scene.clients.values())


def test_coverage_leaves_no_layer_without_a_client_where_budgets_allow():
    for allocation in ("rgd", "fim"):
        scene = cast(budgets=(6, 6), sizes=(1, 1), server=told)
        for coverage in (True, False):
            method = fed_hello(scene.federation, allocation=allocation, coverage=coverage)
            sets = [layers_of(done) for done in run(method, scene)]
            assert all(len(layers) == 6 for one in sets for layers in one.values())
            covered = [len(set().union(*one.values())) for one in sets]
            assert all(number == 12 for number in covered) if coverage else min(covered) < 12


# T4: what a client draws ------------------------------------------------------------


def test_t4_a_clients_layers_depend_on_seed_round_and_client_alone():
    """T4: not on the order of the cohort, on who else is in it, nor on the rounds before."""
    scene = cast(server=told)
    everyone = scene.federation.profiles
    sets = [layers_of(done) for done in run(fim(scene), scene)]
    backward = run(fim(cast(server=told)), cast(server=told), cohort=lambda number: everyone[::-1])
    assert [layers_of(done) for done in backward] == sets
    for client in BUDGETS:
        alone = run(fim(cast(server=told)), cast(server=told), cohort=lambda number, k=client: [everyone[k]])
        assert [layers_of(done)[client] for done in alone] == [one[client] for one in sets]
    other = run(fim(cast(server=told)), cast(server=told), seed=SEED + 1)
    assert [layers_of(done)[0] for done in other] != [one[0] for one in sets]
    assert len({one[0] for one in sets}) > 10


def test_t4_with_coverage_the_order_of_the_cohort_does_not_matter_either():
    """T4 for the swaps of coverage."""
    sets = []
    for order in (1, -1):
        scene = cast(budgets=(4, 4, 4), server=told)
        cohort = scene.federation.profiles[::order]
        done = run(fed_hello(scene.federation), scene, cohort=lambda number, cohort=cohort: cohort)
        sets.append([layers_of(one) for one in done])
    assert sets[0] == sets[1]


def test_t4_fim_moves_no_draw_of_the_warm_up_and_no_stream_of_a_client():
    """T4: FIM on or off, everything drawn before the first score is the same, and so are the clients' own streams."""
    orders = {}
    for allocation in ("rgd", "fim"):
        scene = small(proxy=4, rounds=4)
        method = fed_hello(scene.federation, allocation=allocation, warmup=2, refresh=1)
        fit, seen = method.exchanges[0], []

        def work(client, order, memory, fit=fit, seen=seen):
            seen.append((order.round, client.id, order.rng, tuple(order.settings["layers"])))
            return fit.work(client, order, memory)

        watched = method._replace(exchanges=(fit._replace(work=work),))
        orders[allocation] = seen, play(Setup(watched, scene.federation.profiles, scene.clients), num_rounds=4)
    (rgd, plain), (scored, fisher) = orders["rgd"], orders["fim"]
    assert [entry[:3] for entry in rgd] == [entry[:3] for entry in scored]
    assert [entry for entry in rgd if entry[0] < 2] == [entry for entry in scored if entry[0] < 2]
    assert same(plain.states[2]["params"], fisher.states[2]["params"])
    assert fisher.states[1]["probabilities"] is None
    assert fisher.states[2]["probabilities"] is not None


# The schedule ------------------------------------------------------------


def test_warm_up_draws_from_the_prior_and_refreshes_come_every_so_many_rounds():
    scene = cast(server=told)
    done = run(fim(scene), scene)
    server = scene.federation.proxy
    assert len(server.scorings) == 4  # before rounds 4, 9, 14 and 19 of 20
    assert [one.state["refreshed"] for one in done] == [None] * 3 + [4] * 5 + [9] * 5 + [14] * 5 + [19] * 2
    for one in done[:4]:
        assert layers_of(one) == expected(PRIOR, one.number)
    assert [one.state["round"] for one in done] == list(range(1, 21))


def test_t11_the_fisher_odds_stay_in_force_between_refreshes():
    """T11: the round after a refresh, and all others to the next, draw from the same Fisher odds, anew each time."""
    scene = cast(server=told)
    done = run(fim(scene), scene)
    for first, stop in ((4, 9), (9, 14), (14, 19), (19, 20)):
        in_force = done[first - 1].state["probabilities"]
        assert in_force != list(PRIOR)
        for number in range(first, stop):
            assert layers_of(done[number]) == expected(in_force, number)
            if number + 1 < stop:
                assert done[number].state["probabilities"] == in_force
    assert len({layers_of(one)[0] for one in done[4:9]}) > 1


def test_odds_are_three_two_one_by_cluster_of_the_smoothed_score():
    scene = cast(server=told)
    done = run(fim(scene, smoothing=0.8), scene)
    average = SCORES[0]
    for call, number in enumerate((4, 9, 14, 19)):
        if call:
            average = [0.8 * old + 0.2 * new for old, new in zip(average, SCORES[call], strict=True)]
        assert done[number - 1].state["scores"] == pytest.approx(average)
        assert done[number - 1].state["probabilities"] == list(odds(layer_weights(done[number - 1].state["scores"])))


def test_without_smoothing_the_newest_scores_count_alone():
    scene = cast(server=told)
    assert run(fim(scene, smoothing=0.0), scene)[8].state["scores"] == SCORES[1]


def test_a_layer_of_the_highest_cluster_is_drawn_more_often():
    high = {2, 7, 9}
    scene = cast(rounds=400, server=lambda call: [100.0 if layer in high else 1.0 for layer in range(12)])
    done = run(fim(scene, warmup=0, refresh=400), scene)
    times = [sum(layer in layers_of(one)[0] for one in done) for layer in range(12)]
    assert min(times[layer] for layer in high) > max(times[layer] for layer in range(12) if layer not in high)


def test_log_scores_cluster_the_logarithm():
    long_tail = [10.0 ** (layer % 6) for layer in range(12)]
    weights = {}
    for log in (False, True):
        scene = cast(server=lambda call: long_tail)
        weights[log] = run(fim(scene, log_scores=log), scene, num_rounds=5)[-1].state["probabilities"]
        assert weights[log] == list(odds(layer_weights(long_tail, log=log)))
    assert weights[True] != weights[False]


@pytest.mark.parametrize(("rounds", "refreshes"), [(30, list(range(3, 30, 3))), (5, [1, 2, 3, 4]), (1, [])])
def test_warm_up_and_refresh_are_a_tenth_of_all_rounds_by_default(rounds, refreshes):
    scene = cast(rounds=rounds, server=told)
    done = run(fed_hello(scene.federation), scene)
    assert [one.number + 1 for one in done if one.state["refreshed"] == one.number + 1] == refreshes
    assert len(scene.federation.proxy.scorings) == len(refreshes)


def test_without_warm_up_the_server_scores_before_the_first_round():
    scene = cast(server=told)
    method = fim(scene, warmup=0)
    state = method.init(Rng(0))
    assert state["refreshed"] == 0
    assert state["scores"] == SCORES[0]
    done = run(method, scene, state=state, num_rounds=1)
    assert layers_of(done[0]) == expected(state["probabilities"], 0)


def test_the_servers_scores_are_those_of_the_round_before():
    scene = cast(server=told)
    seen = []
    score = scene.federation.proxy.layer_scores
    scene.federation.proxy.layer_scores = lambda order, **kw: seen.append(order.params) or score(order, **kw)
    done = run(fim(scene), scene)
    assert [
        same(params, done[number - 1].state["params"]) for params, number in zip(seen, (4, 9, 14, 19), strict=True)
    ] == [True] * 4


@pytest.mark.parametrize("source", ["server", "clients"])
def test_the_kind_of_score_is_handed_on_and_it_is_of_log_probabilities(source):
    scene = cast(server=told, scores=lambda client, call: SCORES[call])
    run(fim(scene, score="norm", scores_from=source), scene)
    asked = scene.federation.proxy.scorings if source == "server" else scene.clients[1].scorings
    assert asked == [("norm", "log-prob")] * 4


def test_in_real_clients_the_odds_follow_the_servers_fisher_scores():
    scene = small(proxy=6, rounds=3)
    method = fed_hello(scene.federation, warmup=1, refresh=1, smoothing=0.0)
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=2)
    for state in played.states[1:]:
        assert state["scores"] == scene.federation.proxy.layer_scores(Order(state["params"]))
        assert state["probabilities"] == list(odds(layer_weights(state["scores"])))


# Scores from clients ------------------------------------------------------------


def by_client(client: int, call: int) -> list[float]:
    return [float((layer + 1) * (client + 1) + call) for layer in range(12)]


def test_clients_scores_are_averaged_by_their_examples():
    scene = cast(scores=by_client)
    done = run(fim(scene, scores_from="clients", smoothing=0.8), scene)
    assert [one.state["refreshed"] for one in done] == [None] * 3 + [4] * 5 + [9] * 5 + [14] * 5 + [19] * 2
    mean = [
        [(10 * by_client(0, c)[i] + 20 * by_client(1, c)[i] + 30 * by_client(2, c)[i]) / 60 for i in range(12)]
        for c in range(2)
    ]
    assert done[3].state["scores"] == pytest.approx(mean[0])
    assert done[8].state["scores"] == pytest.approx([0.8 * a + 0.2 * b for a, b in zip(*mean, strict=True)])
    assert all(len(client.scorings) == 4 for client in scene.clients.values())


def test_only_scalars_travel_and_only_in_the_round_before_a_refresh():
    scene, other = cast(scores=by_client), cast(scores=by_client)
    done = run(fim(scene, scores_from="clients", refresh=5), scene)
    silent = run(fed_hello(other.federation, allocation="rgd", coverage=False), other)
    names = {f"score_{layer}" for layer in range(12)}
    for one, plain in zip(done, silent, strict=True):
        scored = one.number in (3, 8, 13, 18)
        for client, metrics in one.traffic[0].metrics.items():
            assert metrics.keys() == ({"loss"} | names if scored else {"loss"})
            assert all(type(value) is float for value in metrics.values())
            if scored:
                assert [metrics[f"score_{i}"] for i in range(12)] == by_client(client, (3, 8, 13, 18).index(one.number))
        assert one.traffic[0].bytes_up == plain.traffic[0].bytes_up
        assert one.traffic[0].bytes_down == plain.traffic[0].bytes_down


def test_a_missing_clients_scores_are_not_counted():
    scene = small(rounds=3)
    method = fed_hello(scene.federation, scores_from="clients", warmup=1, refresh=1, smoothing=0.0)
    setup = Setup(method, scene.federation.profiles, scene.clients)
    played = play(setup, num_rounds=1, away=lambda client, *_: client == 1)
    ((traffic,),) = played.traffic
    sent = {k: [metrics[f"score_{i}"] for i in range(4)] for k, metrics in traffic.metrics.items()}
    assert sent.keys() == {0, 2}
    mean = [(5 * sent[0][i] + 6 * sent[2][i]) / 11 for i in range(4)]
    assert played.states[-1]["scores"] == pytest.approx(mean)


def test_a_clients_scores_are_those_of_the_tensors_it_received():
    scene = small(rounds=3)
    method = fed_hello(scene.federation, scores_from="clients", warmup=1, refresh=1)
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=1)
    ((traffic,),) = played.traffic
    for client, metrics in traffic.metrics.items():
        direct = scene.clients[client].layer_scores(Order(played.states[0]["params"]))
        assert [metrics[f"score_{i}"] for i in range(4)] == direct


def test_from_clients_without_warm_up_the_prior_serves_until_scores_have_come():
    scene = cast(scores=by_client)
    done = run(fim(scene, scores_from="clients", warmup=0), scene)
    for one in done[:5]:
        assert layers_of(one) == expected(PRIOR, one.number)
    assert [one.state["refreshed"] for one in done[:6]] == [None] * 4 + [5, 5]


# Bad settings ------------------------------------------------------------


def test_scores_from_a_server_without_rows_are_refused_with_both_ways_out():
    with pytest.raises(ConfigError, match="the server has no rows of its own") as caught:
        fed_hello(cast().federation)
    assert "set data.proxy" in str(caught.value)
    assert "method.scores_from = 'clients'" in str(caught.value)
    fed_hello(cast().federation, allocation="rgd")  # needs none


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "method.warmup = -1: must be at least 0"),
        ({"refresh": 0}, "method.refresh = 0: must be at least 1"),
        ({"smoothing": 1.0}, "method.smoothing = 1.0: must be below 1.0"),
        ({"smoothing": -0.1}, "method.smoothing = -0.1: must be at least 0.0"),
    ],
)
def test_the_signature_says_which_numbers_are_allowed(settings, message):
    with pytest.raises(ConfigError) as caught:
        arguments(fed_hello, settings, prefix="method")
    assert caught.value.problems == (message,)


# State ------------------------------------------------------------


def test_the_state_resumes_in_the_middle_of_an_interval():
    for settings in ({"scores_from": "clients"}, {"scores_from": "server"}):
        scene = cast(server=lambda call: SCORES[1], scores=lambda client, call: SCORES[client])
        whole = run(fim(scene, **settings), scene)
        half = run(fim(scene, **settings), scene, num_rounds=7)
        rest = run(fim(scene, **settings), scene, state=half[-1].state, start=7)
        assert [layers_of(one) for one in itertools.chain(half, rest)] == [layers_of(one) for one in whole]
        assert same(rest[-1].state, whole[-1].state)


def test_the_head_is_trained_and_averaged():
    """The released code trains the head and throws it away; ours is in the round like any layer."""
    scene = small(proxy=4)
    method = fed_hello(scene.federation, allocation="gd")
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=1)
    before, after = (state["params"] for state in played.states)
    assert all(not torch.equal(before[name], after[name]) for name in scene.layout.head)
