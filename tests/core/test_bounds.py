"""What one reply may move and weigh among those of its exchange."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.core.bounds import bounded, fair_weight, limited, moved_far
from fedquilt.core.checks import reply_check
from fedquilt.core.defence import UNBOUNDED, Defence
from fedquilt.core.errors import RoundError
from fedquilt.core.loop import perform, rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Order, Profile, Range, Reply

SENT = {"a": torch.zeros(3), "b": torch.full((2, 2), 5.0)}


def exchange_of(**more) -> Exchange:
    return Exchange("fit", None, None, None, lambda order: dict(order.params), **more)


def orders_of(*clients, **settings):
    return {client: Order(SENT, settings) for client in clients}


def moved_by(client, length, weight=1.0):
    """A reply whose update has this root mean square."""
    return Reply(client, {name: tensor + length for name, tensor in SENT.items()}, weight)


def of(replies, ratio=10.0, share=None, exchange=None, orders=None):
    exchange = exchange or exchange_of()
    return bounded(
        exchange,
        orders or orders_of(*(one.client for one in replies)),
        replies,
        Defence(max_norm_ratio=ratio, max_weight_share=share),
    )


# Updates ------------------------------------------------------------


def test_a_long_update_is_scaled_down_to_the_ratio_times_the_median_and_all_others_are_the_same_objects():
    replies = [moved_by(0, 1.0), moved_by(1, 1e20), moved_by(2, 2.0), moved_by(3, 3.0)]
    made, notes = of(replies)
    assert made[0] is replies[0]
    assert made[2] is replies[2]
    assert made[3] is replies[3]
    assert notes == {1: {"scale": pytest.approx(2e-19, rel=1e-6)}}
    for name, tensor in SENT.items():
        torch.testing.assert_close(made[1].params[name], tensor + 20.0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1.0], [1.0]),  # nobody to compare with
        ([1.0, 1e9], [1.0, 10.0]),  # of two the shorter counts: the other cannot raise its own bound
        ([0.0, 0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 1.0, 2.0]),  # who changed nothing is no measure for the others
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, 2.0, 10.0, 11.0], [1.0, 2.0, 10.0, 11.0]),
        ([1.0, 1.0, 1e30, 1e30], [1.0, 1.0, 10.0, 10.0]),  # half of them
    ],
)
def test_the_median_of_few_of_none_and_of_half(lengths, expected):
    replies = [moved_by(client, length) for client, length in enumerate(lengths)]
    made, _ = of(replies)
    assert [moved_far(exchange_of(), Order(SENT), one).rms for one in made] == pytest.approx(expected, rel=1e-6)


def test_clients_that_train_little_compare_with_those_that_train_much():
    little = Reply(0, {"a": torch.full((3,), 1.0)}, 1.0)
    exchange = Exchange("fit", None, None, None, lambda order: {n: SENT[n] for n in order.settings["names"]})
    orders = {client: Order(SENT, {"names": ["a"] if client == 0 else ["a", "b"]}) for client in range(3)}
    made, notes = of([little, moved_by(1, 1.0), moved_by(2, 10.5)], exchange=exchange, orders=orders)
    assert list(notes) == [2]
    assert made[0] is little


def test_tensors_that_are_values_count_neither_for_the_length_nor_are_they_scaled():
    exchange = exchange_of(ranges=lambda order: {"b": Range(0.0, 1e9)})
    replies = [moved_by(0, 1.0), moved_by(1, 1.0), Reply(2, {"a": SENT["a"] + 100, "b": SENT["b"] + 7}, 1.0)]
    made, notes = of(replies, exchange=exchange)
    assert notes == {2: {"scale": pytest.approx(0.1)}}
    assert torch.equal(made[2].params["b"], replies[2].params["b"])
    torch.testing.assert_close(made[2].params["a"], SENT["a"] + 10)


def test_an_exchange_that_expects_nothing_sends_no_updates():
    silent = Exchange("embed", None, None, None)
    replies = [moved_by(0, 1.0), moved_by(1, 1e9)]
    assert of(replies, exchange=silent).replies == replies


def test_only_peers_are_compared():
    exchange = exchange_of(peers=lambda order: order.settings["architecture"])
    orders = {client: Order(SENT, {"architecture": "ab"[client % 2]}) for client in range(4)}
    replies = [moved_by(0, 1.0), moved_by(1, 100.0), moved_by(2, 1.0), moved_by(3, 100.0)]
    assert not of(replies, exchange=exchange, orders=orders).notes
    assert sorted(of(replies).notes) == [1, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=9), st.floats(1.0, 100.0))
def test_no_size_is_above_the_ratio_and_the_least_half_stays(sizes, ratio):
    found = limited(sizes, ratio)
    there = sorted(size for size in sizes if size > 0)
    if there:
        middle = there[(len(there) - 1) // 2]
        assert all(made <= ratio * middle for made in found)
        assert all(made == size for made, size in zip(found, sizes, strict=True) if size <= middle)
    else:
        assert found == sizes


# Weights ------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(2**-20, 2**48), st.integers(1, 2**48)), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_no_share_is_above_the_bound_where_there_are_enough_and_all_are_equal_where_not(weights, share):
    level = fair_weight(weights, share)
    made = [min(weight, level) for weight in weights]
    assert min(made) > 0
    if share * len(weights) > 1:
        assert max(made) / math.fsum(made) <= share * (1 + 1e-9)
        if max(made) < max(weights):  # no more is taken away than must be
            assert max(made) / math.fsum(made) >= share * (1 - 1e-9)
    else:
        assert made == [min(weights)] * len(weights)


def test_weights_within_the_bound_stay_as_they_are():
    assert fair_weight([3, 2, 4], 0.5) == math.inf
    assert fair_weight([40, 40, 40, 2**48], 0.5) == pytest.approx(120)
    assert fair_weight([100, 100, 1, 1], 0.4) == pytest.approx(4)


def test_the_share_holds_for_every_tensor_and_not_only_for_the_sum():
    replies = [
        Reply(0, {"a": SENT["a"], "b": SENT["b"]}, 100.0),
        Reply(1, {"a": SENT["a"]}, 60.0),
        Reply(2, {"a": SENT["a"]}, 60.0),
        Reply(3, {"b": SENT["b"]}, 5.0),
    ]
    made, notes = of(replies, "off", 0.5)
    assert [one.weight for one in made] == [5.0, 5.0, 5.0, 5.0]  # of the two that sent b, none is more than half
    assert notes[0] == {"sent_weight": 100.0}
    assert made[3] is replies[3]


def test_who_is_alone_with_a_tensor_is_not_bounded_for_it():
    replies = [Reply(0, {"a": SENT["a"], "b": SENT["b"]}, 3.0), Reply(1, {"a": SENT["a"]}, 3.0)]
    assert of(replies, "off", 0.5).replies == replies


# In the loop ------------------------------------------------------------

PROFILES = tuple(Profile(k, 10, "toy", Budget(1), "toy") for k in range(4))


def played(spoil, **arguments):
    def ask(state, turn):
        return {profile.id: Order(state["params"]) for profile in turn.cohort}

    def work(client, order, memory):
        drawn = {name: 0.01 * torch.randn(t.shape, generator=order.rng.torch()) for name, t in order.params.items()}
        return Reply(client, {name: order.params[name] + drawn[name] for name in drawn}, 10.0, {"loss": 0.5}), memory

    def merge(state, replies):
        return {"params": layerwise_mean(state["params"], replies)}

    def send(exchange, orders):
        for client, order in orders.items():
            reply, _ = perform(exchange, client, client, order, {})
            yield spoil(order, reply) if client == 2 else reply

    fit = Exchange(
        "fit", ask, work, merge, lambda order: dict(order.params), metrics=lambda order: {"loss": Range(0.0, 9.0)}
    )
    method = Method("toy", lambda rng: {"params": SENT}, (fit,), lambda state, profile: Order(state["params"]))
    arguments = {"num_rounds": 2, "check": reply_check(PROFILES), **arguments}
    return list(rounds(method, lambda number: PROFILES, send, Rng(1), **arguments))


def test_what_was_bounded_is_told_and_bounds_that_do_not_act_change_no_bit():
    honest = [
        played(lambda order, reply: reply, bounds=bounds) for bounds in (UNBOUNDED, Defence(max_weight_share=0.5))
    ]
    for one, other in zip(*honest, strict=True):
        assert all(torch.equal(one.state["params"][n], other.state["params"][n]) for n in SENT)
        assert other.traffic[0].bounded == {}
        assert other.traffic[0].weights == dict.fromkeys(range(4), 10.0)

    def long(order, reply):
        return replace(reply, params={name: tensor + 1000 for name, tensor in order.params.items()})

    first = played(long, bounds=Defence())[0]
    assert list(first.traffic[0].bounded) == [2]
    assert all((first.state["params"][n] - SENT[n]).abs().max() < 0.1 for n in SENT)
    assert played(long)[0].state["params"]["a"].min() > 200


def test_metrics_that_nobody_asked_for_are_dropped_and_the_reply_is_taken():
    def chatty(order, reply):
        return replace(
            reply, metrics={"loss": 0.5, "score_0": 1e308, "words": "low", **{str(n): n for n in range(2000)}}
        )

    (moved,) = played(chatty)[0].traffic
    assert moved.dropped == {}
    assert moved.metrics[2] == {"loss": 0.5}


ODD = {
    "above": 9.5,
    "below": -0.1,
    "nan": math.nan,
    "huge": 10**400,
    "digits": -(10**5000),
    "true": True,
    "text": "low",
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_a_metric_out_of_its_range_is_a_reason_to_drop_the_reply(value):
    (moved,) = played(lambda order, reply: replace(reply, metrics={"loss": value}))[0].traffic
    assert list(moved.dropped) == [2]
    assert moved.dropped[2].startswith("metric 'loss' is ")
    assert len(moved.dropped[2]) < 150


def test_a_merge_that_makes_no_number_ends_the_run_before_it_is_kept():
    broken = Exchange(
        "fit",
        lambda state, turn: {0: Order(SENT)},
        lambda client, order, memory: (Reply(0, SENT, 1.0), memory),
        lambda state, replies: {"params": [{"x": torch.tensor([math.inf])}], "num": len(list(replies))},
    )
    method = Method("toy", lambda rng: {}, (broken,), lambda state, profile: Order({}))
    with pytest.raises(RoundError, match=r"after the merge, params\.0\.x is not finite"):
        list(
            rounds(
                method,
                lambda number: PROFILES,
                lambda exchange, orders: [perform(exchange, 0, 0, orders[0], {})[0]],
                Rng(0),
                num_rounds=1,
            )
        )
