"""What is said of every kind of bad reply, and that the others' result does not notice it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.core.checks import reply_check
from fedquilt.core.defence import Defence
from fedquilt.core.errors import RoundError
from fedquilt.core.loop import perform, rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Failure, Order, Profile, Range, Reply

PROFILES = tuple(Profile(k, 10 * (k + 1), "toy", Budget(1), "toy") for k in range(4))
SENT = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "frozen": torch.zeros(5)}
ORDER = Order(SENT, {}, round=3)
GOOD = Reply(1, {"a": torch.full((2, 3), 0.5), "b": torch.ones(4, dtype=torch.bfloat16)}, 20.0, {"loss": 0.3}, 3)


def expects(order):
    return {name: tensor for name, tensor in order.params.items() if name != "frozen"}


EXCHANGE = Exchange("fit", None, None, None, expects)
UNANNOUNCED = Exchange("fit", None, None, None)
LIMITS = Defence(max_update_norm=10.0, max_reply_bytes=1000)
check = reply_check(PROFILES, LIMITS)


def held(**tensors):
    return replace(GOOD, params={**GOOD.params, **tensors})


BAD = {
    "NaN": (held(a=torch.full((2, 3), math.nan)), "tensor 'a' is not finite"),
    "infinity": (held(b=torch.full((4,), math.inf, dtype=torch.bfloat16)), "tensor 'b' is not finite"),
    "another shape": (held(a=torch.zeros(3, 2)), "tensor 'a' has shape (3, 2), not (2, 3)"),
    "another dtype": (held(b=torch.ones(4)), "tensor 'b' is torch.float32, not torch.bfloat16"),
    "a tensor is missing": (replace(GOOD, params={"a": GOOD.params["a"]}), "tensor 'b' is missing"),
    "nothing at all": (replace(GOOD, params={}), "tensor 'a' is missing"),
    "a tensor not asked for": (held(frozen=torch.zeros(5)), "tensor 'frozen' was not asked for"),
    "a norm of a million": (held(a=torch.full((2, 3), 1e6)), "the update's norm is 2.449e+06; at most 10 is allowed"),
    "200 MB of junk": (
        held(junk=torch.zeros(1).expand(50_000_000)),
        "200000032 bytes of tensors; at most 1000 are allowed",
    ),
    "an old reply": (replace(GOOD, round=2), "answers round 3, but this is round 4"),
    "a reply of the future": (replace(GOOD, round=4), "answers round 5, but this is round 4"),
    "weight": (replace(GOOD, weight=21.0), "weight is 21, but the client announced 20 examples"),
    "no weight": (replace(GOOD, weight=math.nan), "weight is nan, not a number above 0"),
    "a weight beyond all floats": (replace(GOOD, weight=10**400), "weight is an integer of 1329 bits, but the client"),
    "a weight of thousands of digits": (replace(GOOD, weight=-(10**5000)), "weight is an integer of 16610 bits, not a"),
    "a subnormal weight": (replace(GOOD, weight=5e-324), "weight is 5e-324; it must be at least 9.54e-07 examples"),
    "weight true": (replace(GOOD, weight=True), "weight is True, not a number"),
    "weight -0": (replace(GOOD, weight=-0.0), "weight is -0.0, not a number above 0"),
    "a metric beyond all floats": (replace(GOOD, metrics={"loss": 10**400}), "loss is an integer of 1329 bits"),
    "a metric true": (replace(GOOD, metrics={"loss": False}), "metric 'loss' is False, not a number"),
    "a round of thousands of digits": (replace(GOOD, round=10**5000), "answers round an integer of 16610 bits"),
    "negative weight": (replace(GOOD, weight=-1.0), "weight is -1.0, not a number above 0"),
    "weight in words": (replace(GOOD, weight="many"), "weight is 'many', not a number"),
    "metric": (replace(GOOD, metrics={"loss": math.inf}), "loss is inf"),
    "metric in words": (replace(GOOD, metrics={"loss": "low"}), "metric 'loss' is 'low', not a number"),
    "metrics": (replace(GOOD, metrics={str(n): 0.0 for n in range(1001)}), "1001 metrics; at most 1000 are allowed"),
    "long metric": (replace(GOOD, metrics={"x" * 101: 0.0}), "is not text of at most 100 characters"),
    "a stranger": (replace(GOOD, client=9), "client 9 is not part of this federation"),
}


def test_a_good_reply_passes():
    assert check(EXCHANGE, ORDER, GOOD) is None
    assert check(EXCHANGE, ORDER, replace(GOOD, metrics={str(n): n for n in range(1000)})) is None


@pytest.mark.parametrize(("reply", "reason"), BAD.values(), ids=BAD.keys())
def test_every_bad_reply_is_refused_with_its_reason(reply, reason):
    said = check(EXCHANGE, ORDER, reply)
    assert said is not None
    assert reason in said
    assert len(said) < 200


def test_junk_is_refused_by_name_and_shape_where_no_size_is_set():
    free = reply_check(PROFILES)
    assert free(EXCHANGE, ORDER, BAD["200 MB of junk"][0]) == "tensor 'junk' was not asked for"
    large = held(a=torch.zeros(1).expand(50_000_000))
    assert free(EXCHANGE, ORDER, large) == "tensor 'a' has shape (50000000,), not (2, 3)"
    assert free(EXCHANGE, ORDER, held(a=torch.full((2, 3), 1e6))) is None


def test_an_exchange_that_announces_nothing_takes_any_tensors_within_the_limits():
    other = replace(GOOD, params={"embedding": torch.ones(3), "rows": torch.arange(3), "a": torch.zeros(7)})
    assert check(UNANNOUNCED, ORDER, other) is None
    assert check(UNANNOUNCED, ORDER, held(a=torch.full((2, 3), 100.0))) is not None
    assert check(UNANNOUNCED, ORDER, replace(GOOD, params={"x": torch.zeros(1000)})) is not None


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 100.0), st.integers(0, 2**31))
def test_the_norm_is_that_of_the_whole_update_and_the_bound_itself_is_taken(bound, seed):
    a = torch.randn(2, 3, generator=Rng(seed).torch())
    a *= bound / float(a.double().norm())
    inside, outside = held(a=a * 0.999), held(a=a * 1.001)
    bounded = reply_check(PROFILES, Defence(max_update_norm=bound))
    assert bounded(EXCHANGE, ORDER, inside) is None
    assert "the update's norm is" in bounded(EXCHANGE, ORDER, outside)


VALUED = EXCHANGE._replace(
    metrics=lambda order: {"loss": Range(0.0, 9.0), "rank": Range(1, 4, whole=True)},
    ranges=lambda order: {"a": Range(0.0, 1.0)},
)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (replace(GOOD, metrics={"rank": 2.5}), "metric 'rank' is 2.5; it must be an integer"),
        (replace(GOOD, metrics={"rank": 5}), "metric 'rank' is 5; it must be from 1 to 4"),
        (replace(GOOD, metrics={"loss": 1e308}), "metric 'loss' is 1e+308; it must be from 0 to 9"),
        (replace(GOOD, metrics={"score_0": 1.0}), "metric 'score_0' was not asked for"),
        (held(a=torch.full((2, 3), 3e38)), "tensor 'a' holds 3e+38; it must be from 0 to 1"),
        (held(a=torch.full((2, 3), -0.5)), "tensor 'a' holds -0.5; it must be from 0 to 1"),
        (held(a=torch.tensor([[0.5, 2.0, 1.0], [-0.1, 0.0, 1.0]])), "tensor 'a' holds -0.1; it must be from 0 to 1"),
    ],
)
def test_numbers_are_held_to_the_ranges_of_their_exchange(reply, reason):
    assert reply_check(PROFILES)(VALUED, ORDER, reply) == reason
    assert reply_check(PROFILES)(VALUED, ORDER, replace(GOOD, metrics={"rank": 2.0, "loss": -0.0})) is None


def test_numbers_beyond_all_measure_are_refused_and_large_ones_where_large_ones_were_sent_are_not():
    free = reply_check(PROFILES)
    far = held(a=torch.tensor([[0.0, 0.0, 0.0], [0.0, -1e20, 0.0]]))
    assert free(EXCHANGE, ORDER, far) == "tensor 'a' holds -1e+20; it must be from -1e+06 to 1e+06"
    sent = Order({**SENT, "a": torch.full((2, 3), 1e4)}, {}, round=3)
    assert free(EXCHANGE, sent, held(a=torch.full((2, 3), 9e9))) is None
    assert "from -1e+10 to 1e+10" in free(EXCHANGE, sent, far)
    assert free(UNANNOUNCED, ORDER, replace(GOOD, params={"embedding": torch.full((2, 3), 9e11)})) is None
    said = free(UNANNOUNCED, ORDER, replace(GOOD, params={"embedding": torch.full((2, 3), 1e20)}))
    assert said == "tensor 'embedding' holds 1e+20; it must be from -1e+12 to 1e+12"


# In the loop --------------------------------------------------------


def method() -> Method:
    def ask(state, turn):
        return {p.id: Order(state["params"]) for p in turn.cohort}

    def work(client, order, memory):
        generator = order.rng.torch()
        params = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            for name, tensor in expects(order).items()
        }
        return Reply(client, params, PROFILES[client].num_examples, {"loss": 0.1}), memory

    def merge(state, replies):
        return {"params": layerwise_mean(state["params"], replies)}

    exchange = Exchange("fit", ask, work, merge, expects)
    return Method("toy", lambda rng: {"params": SENT}, (exchange,), lambda state, profile: Order(state["params"]))


def played(spoil, **settings):
    """The rounds of the toy; ``spoil(round, client, reply)`` is what arrives in place of a reply."""

    def send(exchange, orders):
        for client, order in orders.items():
            reply, _ = perform(exchange, client, client, order, {})
            yield spoil(order.round, client, reply)

    arguments = {"num_rounds": 4, "check": check} | settings
    return list(rounds(method(), lambda number: PROFILES, send, Rng(1), **arguments))


def silent(number, client, reply):
    return Failure(client, "away") if client == 2 else reply


@pytest.mark.parametrize("name", [name for name in BAD if name != "a stranger"])
def test_the_honest_clients_result_is_the_same_bits_as_without_the_bad_one(name):
    bad, reason = BAD[name]
    kept = {}

    def spoiled(number, client, reply):
        if client != 2:
            return reply
        if name == "an old reply":
            kept.setdefault("first", reply)
            return kept["first"] if number else Failure(2, "away")
        weight = 31.0 if name == "weight" else bad.weight
        reason_round = number + 1 if name == "a reply of the future" else number
        reason_round = bad.round if name == "a round of thousands of digits" else reason_round
        return replace(bad, client=2, weight=weight, round=reason_round)

    with_it, without = played(spoiled), played(silent)
    for one, other in zip(with_it, without, strict=True):
        assert all(torch.equal(one.state["params"][key], other.state["params"][key]) for key in SENT)
        assert list(one.traffic[0].dropped) == [2]
        assert 2 not in one.traffic[0].bytes_up
        assert sorted(one.traffic[0].metrics) == [0, 1, 3]
    said = with_it[-1].traffic[0].dropped[2]
    expected = {
        "an old reply": "answers round 1, but this is round 4",
        "a reply of the future": "answers round 5, but this is round 4",
        "weight": "weight is 31, but the client announced 30 examples",
    }
    assert expected.get(name, reason) in said


def test_a_replayed_reply_would_have_passed_without_its_round():
    kept = {}

    def replayed(number, client, reply):
        return replace(kept.setdefault(client, reply), round=number) if client == 2 else reply

    assert all(not one.traffic[0].dropped for one in played(replayed))


def test_a_round_with_too_few_good_replies_fails_and_names_every_reason():
    def spoiled(number, client, reply):
        return replace(reply, params={}) if client != 0 else reply

    assert len(played(spoiled, min_replies=1)) == 4
    with pytest.raises(RoundError, match=r"1 of 4 clients sent a usable reply and 2 are needed") as caught:
        played(spoiled, min_replies=2)
    for client in (1, 2, 3):
        assert f"client {client}: tensor 'a' is missing" in str(caught.value)


def test_the_larger_of_quorum_and_min_replies_is_needed():
    def spoiled(number, client, reply):
        return Failure(client, "away") if client else reply

    for share, least, needed in ((0.5, 3, 3), (1.0, 2, 4)):
        with pytest.raises(RoundError, match=f"and {needed} are needed"):
            played(spoiled, quorum=share, min_replies=least)


def test_without_a_check_replies_need_only_be_finite():
    def odd(number, client, reply):
        return replace(reply, round=77, weight=1e9) if client == 2 else reply

    assert all(not one.traffic[0].dropped for one in played(odd, check=None))
