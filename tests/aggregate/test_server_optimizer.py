"""A server optimiser around a method: its steps, what rests, what lies in the state, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.server_optimizer import with_server_optimizer
from fedquilt.aggregate.settings import ServerOptimizer
from fedquilt.core.defence import UNBOUNDED, Defence
from fedquilt.core.errors import ConfigError
from fedquilt.core.loop import rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Order, Profile, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

PROFILES = tuple(Profile(k, k + 1, "toy", Budget(1), "toy") for k in range(3))
KINDS = ("momentum", "adam", "yogi")
every_kind = pytest.mark.parametrize("kind", KINDS)


def moving(schedule):
    """In round t every client adds ``schedule[t][name]`` to each tensor that it names, and sends these alone."""

    def init(rng):
        generator = rng.torch()
        return {"params": {name: torch.randn(2, 2, generator=generator) for name in "ab"}, "round": 0}

    def ask(state, turn):
        return {p.id: Order(state["params"], {"round": state["round"]}) for p in turn.cohort}

    def work(client, order, memory):
        moves = schedule[order.settings["round"]]
        return Reply(client, {name: order.params[name] + move for name, move in moves.items()}, 1.0), memory

    def merge(state, replies):
        return {"params": layerwise_mean(state["params"], replies), "round": state["round"] + 1}

    return Method("moving", init, (Exchange("fit", ask, work, merge),), lambda state, profile: Order(state["params"]))


def states(method, num_rounds, **more):
    send = LocalEngine({k: k for k in range(3)}).send
    done = rounds(method, lambda number: PROFILES, send, Rng(4), num_rounds=num_rounds, **more)
    return [one.state for one in done]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def first(method):
    return method.init(Rng(4).child("init"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5))
def test_three_kinds_step_as_by_hand(moves):
    method = moving([{"a": move} for move in moves])
    start = first(method)["params"]["a"].double()

    def by_hand(kind):
        x, m, v = start, torch.zeros(2, 2).double(), torch.full((2, 2), 1e-6).double()
        for move in moves:
            pseudo = (x.float() + move).double() - x
            if kind == "momentum":
                m = 0.9 * m + pseudo
                x = (x + m).float().double()
                continue
            m, square = 0.9 * m + 0.1 * pseudo, pseudo**2
            v = 0.99 * v + 0.01 * square if kind == "adam" else v - 0.01 * square * (v - square).sign()
            x = (x + 1e-3 * m / (v**0.5 + 1e-3)).float().double()
        return x

    for kind in KINDS:
        end = states(with_server_optimizer(method, ServerOptimizer(kind)), len(moves))[-1]["params"]
        torch.testing.assert_close(end["a"].double(), by_hand(kind), rtol=1e-5, atol=1e-6)
        assert torch.equal(end["b"], first(method)["params"]["b"])  # nobody ever sent it


def test_without_momentum_and_at_rate_one_it_is_the_method():
    method = moving([{"a": 0.3, "b": -0.1}, {"b": 0.7}, {"a": 0.2}])
    plain = states(method, 3)
    stepped = states(with_server_optimizer(method, ServerOptimizer("momentum", 1.0, 0.0)), 3)
    assert [same(one["params"], other["params"]) for one, other in zip(plain, stepped, strict=True)] == [True] * 3
    assert [one["round"] for one in stepped] == [1, 2, 3]


@every_kind
def test_what_nobody_sends_rests_with_its_moments_and_goes_on_from_them(kind):
    with_gap = [{"a": 0.3, "b": 0.2}, {"a": 0.1}, {"a": 0.1, "b": -0.1}]
    found = states(with_server_optimizer(moving(with_gap), ServerOptimizer(kind)), 3)
    one, gap, after = ({"x": state["params"]["b"], "m": state["moments"]["momentum"]["b"]} for state in found)
    assert same(one, gap)
    assert not same(gap, after)
    without_gap = [with_gap[0], {"a": 0.1, "b": -0.1}]
    straight = states(with_server_optimizer(moving(without_gap), ServerOptimizer(kind)), 2)[-1]
    assert same(after, {"x": straight["params"]["b"], "m": straight["moments"]["momentum"]["b"]})


@every_kind
def test_clients_that_return_what_they_received_change_no_bit_until_something_has_moved(kind):
    still = states(with_server_optimizer(moving([{"a": 0.0, "b": 0.0}] * 3), ServerOptimizer(kind)), 3)
    assert all(same(state["params"], first(moving([]))["params"]) for state in still)
    later = states(with_server_optimizer(moving([{"a": 0.5}, {"a": 0.0, "b": 0.0}]), ServerOptimizer(kind)), 2)
    assert not torch.equal(later[1]["params"]["a"], later[0]["params"]["a"])  # what is left of its momentum
    assert torch.equal(later[1]["params"]["b"], later[0]["params"]["b"])


@every_kind
def test_moments_go_through_a_checkpoint_and_the_rest_ends_in_the_same_bits(kind):
    method = with_server_optimizer(
        moving([{"a": 0.3}, {"a": -0.2, "b": 0.1}, {"b": 0.4}, {"a": 0.1}]), ServerOptimizer(kind)
    )
    whole = states(method, 4)
    for taken_up in (1, 2, 3):
        held = tree_from_bytes(tree_to_bytes(whole[taken_up - 1]))
        end = states(method, 4, state=held, start=taken_up)[-1]
        assert same(end["params"], whole[-1]["params"])
        for moment, tensors in whole[-1]["moments"].items():
            assert same(end["moments"][moment], tensors)
    assert tree_from_bytes(tree_to_bytes(first(method)))["moments"] == first(method)["moments"]


@every_kind
def test_what_merge_was_given_stays(kind):
    method = with_server_optimizer(moving([{"a": 0.3}, {"a": 0.1}]), ServerOptimizer(kind))
    before = states(method, 1)[0]
    kept = tree_from_bytes(tree_to_bytes(before))
    merged = method.exchanges[0].merge(before, iter([Reply(0, {"a": before["params"]["a"] + 1}, 1.0)]))
    assert same(before["params"], kept["params"])
    assert same(before["moments"]["momentum"], kept["moments"]["momentum"])
    assert not same(before["moments"]["momentum"], merged["moments"]["momentum"])


def test_a_method_without_common_tensors_is_refused_with_the_way_out():
    method = moving([])._replace(init=lambda rng: {"groups": {}})
    with pytest.raises(ConfigError, match=r"server_optimizer = 'adam': the server of method 'moving' keeps no common"):
        with_server_optimizer(method, ServerOptimizer("adam")).init(Rng(0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"server_optimizer": "adamm"},
            r"server_optimizer is 'adamm' \(did you mean 'adam'\?\); .* momentum, adam, yo",
        ),
        ({"server_learning_rate": 0.0}, r"server_learning_rate is 0.0; it must be a finite number above 0"),
        ({"server_momentum": 1.0}, r"server_momentum is 1.0; it must be a finite number of at least 0 and below 1"),
        ({"server_beta2": -0.1}, r"server_beta2 is -0.1; it must be a finite number of at least 0"),
        ({"server_tau": 0.0}, r"server_tau is 0.0; it must be a finite number above 0"),
        ({"server_tau": math.nan}, r"server_tau is nan; it must be a finite number above 0"),
    ],
)
def test_a_number_out_of_range_is_refused_at_once(wrong, message):
    with pytest.raises(ConfigError, match=rf"aggregation\.{message}"):
        ServerOptimizer(**wrong)


def test_without_an_optimiser_it_is_the_method_itself():
    method = moving([])
    assert with_server_optimizer(method, ServerOptimizer()) is method


def test_everything_but_init_and_merge_is_the_methods_own():
    method = moving([])
    made = with_server_optimizer(method, ServerOptimizer("momentum"))
    assert (made.name, made.view) == (method.name, method.view)
    assert made.exchanges[0]._replace(merge=method.exchanges[0].merge) == method.exchanges[0]
    assert made.init(Rng(1))["moments"] == {"momentum": {}, "variance": {}}


# Replies that are far too long ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_one_huge_move_leaves_finite_moments_and_a_tensor_that_stands_still_is_reported(kind):
    moves = [{"a": 0.1, "b": 0.1}, {"a": 1e30, "b": 0.1}, *[{"a": 0.1, "b": 0.1}] * 100]
    played = states(with_server_optimizer(moving(moves), ServerOptimizer(kind)), 102)
    for state in played:
        for tensors in state["moments"].values():
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state["params"].values())
        assert max(float(tensor.abs().max()) for tensor in state["params"].values()) < 5  # a step is of the rate's size
    assert [state["stalled"] for state in played[:2]] == [0, 0]
    # once the momentum is used up, a has moments from which no honest move takes it, and b goes on
    assert all(state["stalled"] == 1 for state in played[-9:])
    far = {name: (played[-1]["params"][name] - played[-2]["params"][name]).abs().max() for name in "ab"}
    assert far["a"] < 1e-6
    assert far["b"] > 1e-4


@every_kind
def test_what_moves_is_not_reported(kind):
    moves = [{"a": 0.1 * 0.5**number, "b": 1e-6} for number in range(8)]
    assert all(
        state["stalled"] == 0 for state in states(with_server_optimizer(moving(moves), ServerOptimizer(kind)), 8)
    )


def test_with_the_bound_on_updates_one_huge_reply_holds_nothing_back():
    method = with_server_optimizer(moving([{"a": 0.1, "b": 0.1}] * 100), ServerOptimizer("adam"))
    (fit,) = method.exchanges
    fit = fit._replace(expects=lambda order: dict(order.params))
    engine = LocalEngine({k: k for k in range(3)})

    def send(exchange, orders):
        for reply in engine.send(exchange, orders):
            far = reply.client == 1 and reply.round == 1
            yield replace(reply, params={n: t * 1e18 for n, t in reply.params.items()}) if far else reply

    def end(bounds):
        changed = method._replace(exchanges=(fit,))
        return [*rounds(changed, lambda n: PROFILES, send, Rng(4), num_rounds=100, bounds=bounds)][-1].state

    bounded, free = end(Defence()), end(UNBOUNDED)
    start = first(method)["params"]
    steady = {name: (bounded["params"][name] - start[name]).abs().min() for name in "ab"}
    assert free["stalled"] == 2
    assert bounded["stalled"] == 0
    assert min(steady.values()) > 0.05  # of 0.1, 100 steps of 0.001
