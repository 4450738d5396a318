"""Clipping is exact, noise has the size it should have, and nothing else of a client leaves it."""

import math

import pytest
import torch

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.robust import clipped_mean
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.loop import perform, rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import squared_norm, sub
from fedquilt.core.rng import Rng, secret
from fedquilt.core.types import Budget, Order, Profile, Reply
from fedquilt.core.wrap import with_local
from fedquilt.privacy.noise import gaussian, noise_generator, with_central_dp, with_local_dp

PROFILES = tuple(Profile(k, 10 * (k + 1), "toy", Budget(1), "toy") for k in range(4))
SHAPES = {"a": (40, 50), "b": (60, 50), "head": (10, 10)}
HOLDERS = {0: ("a", "head"), 1: ("a", "b", "head"), 2: ("b", "head"), 3: ("a", "b", "head")}


def method(length=5.0, weighting="uniform") -> Method:
    """Client k moves the tensors it holds by an update of norm ``length (k + 1)``, drawn from its order's stream."""

    def init(rng):
        generator = rng.torch()
        return {"params": {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, "other": 7}

    def ask(state, turn):
        return {p.id: Order(state["params"]) for p in turn.cohort}

    def work(client, order, memory):
        generator = order.rng.torch()
        step = {name: torch.randn(SHAPES[name], generator=generator) for name in HOLDERS[client]}
        factor = length * (client + 1) / math.sqrt(squared_norm(step))
        start = {**{name: torch.zeros(shape) for name, shape in SHAPES.items()}, **order.params}
        params = {name: start[name] + factor * change for name, change in step.items()}
        return Reply(client, params, 10.0 * (client + 1), {"loss": 0.5, "score_0": 1.0}), memory

    def merge(state, replies):
        return {**state, "params": layerwise_mean(state["params"], replies, weighting)}

    return Method("toy", init, (Exchange("fit", ask, work, merge),), lambda state, profile: Order(state["params"]))


def played(method, num_rounds=1, seen=None, seed=1):
    memories: dict = {}

    def send(exchange, orders):
        for client, order in orders.items():
            reply, memories[client] = perform(exchange, client, client, order, memories.get(client, {}))
            if seen is not None:
                seen.append((order, reply))
            yield reply

    return list(rounds(method, lambda number: PROFILES, send, Rng(seed), num_rounds=num_rounds))


def plain_replies(**settings):
    seen = []
    played(method(**settings), seen=seen)
    return seen[0][0].params, [reply for _, reply in seen]


# Central -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1.0, 7.0, 1000.0])
def test_without_noise_the_central_result_is_the_clipped_mean(bound):
    base, replies = plain_replies()
    wanted = clipped_mean(base, replies, "uniform", bound=bound)
    (done,) = played(with_central_dp(method(), clip_norm=bound, noise_multiplier=0.0))
    for name in SHAPES:
        torch.testing.assert_close(done.state["params"][name], wanted[name], rtol=1e-6, atol=1e-6)
    assert done.state["releases"] == 1
    assert done.state["other"] == 7


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_central_noise_on_the_sum_has_the_standard_deviation_of_z_times_the_bound(noise):
    bound = 2.0
    quiet = played(with_central_dp(method(), clip_norm=bound, noise_multiplier=0.0))[0].state["params"]
    loud = played(with_central_dp(method(), clip_norm=bound, noise_multiplier=noise, test_key=5))[0].state["params"]
    for name, senders in (("a", 3), ("b", 3), ("head", 4)):
        added = (loud[name] - quiet[name]).double().flatten() * senders  # on the sum, as it was before the division
        spread = 1 / math.sqrt(2 * added.numel())  # relative standard error of a standard deviation
        assert float(added.std()) == pytest.approx(noise * bound, rel=5 * spread)
        assert abs(float(added.mean())) < 5 * noise * bound / math.sqrt(added.numel())


def test_one_client_moves_the_noiseless_sum_by_at_most_twice_the_bound_whatever_it_sends():
    bound, base = 1.5, {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    central = with_central_dp(method(), clip_norm=bound, noise_multiplier=0.0)
    merge = central.exchanges[0].merge

    def result(last):
        replies = [Reply(0, {name: torch.full(s, 0.3) for name, s in SHAPES.items()}, 1.0), Reply(1, last, 1.0)]
        return merge({"params": base, "releases": 0}, replies)["params"]

    generator = Rng(3).torch()
    for size in (1e-3, 1.0, 1e6):
        one = {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        one_moved, other_moved = result(one), result({name: -tensor for name, tensor in one.items()})
        distance = 2 * math.sqrt(squared_norm(sub(one_moved, other_moved)))  # of the sums of two clients
        assert distance <= 2 * bound * (1 + 1e-6)
        if size >= 1:
            assert distance == pytest.approx(2 * bound, rel=1e-5)


def test_a_tensor_that_nobody_sent_gets_no_noise():
    def only_a(state, replies):
        return merge(state, [Reply(r.client, {"a": r.params["a"]}, 1.0) for r in replies if "a" in r.params])

    central = with_central_dp(method(), clip_norm=1.0, noise_multiplier=9.0)
    merge = central.exchanges[0].merge
    central = central._replace(exchanges=(central.exchanges[0]._replace(merge=only_a),))
    first = central.init(Rng(1).child("init"))["params"]
    (done,) = played(central)
    assert torch.equal(done.state["params"]["b"], first["b"])
    assert not torch.equal(done.state["params"]["a"], first["a"])


@pytest.mark.parametrize("wrapper", [with_central_dp, with_local_dp])
def test_without_noise_what_nobody_moves_keeps_its_bits_even_those_of_minus_zero(wrapper):
    def still(client, order, memory):
        return Reply(client, dict(order.params), 1.0), memory

    plain = method()
    zeros = {name: torch.full(shape, -0.0) for name, shape in SHAPES.items()}
    quiet = plain._replace(init=lambda rng: {"params": zeros}, exchanges=(plain.exchanges[0]._replace(work=still),))
    (done,) = played(wrapper(quiet, clip_norm=1.0, noise_multiplier=0.0))
    assert all(bool(torch.signbit(tensor).all()) for tensor in done.state["params"].values())


def test_a_clients_weight_and_metrics_do_not_leave_it():
    for wrapper in (with_central_dp, with_local_dp):
        seen = []
        played(wrapper(method(), clip_norm=1.0, noise_multiplier=1.0), seen=seen)
        assert len(seen) == 4
        assert all(reply.weight == 1.0 and reply.metrics == {} for _, reply in seen)


def test_example_weights_of_the_inner_method_have_no_say():
    one, other = (
        played(with_central_dp(method(weighting=weighting), clip_norm=1.0, noise_multiplier=1.0, test_key=2))[0]
        for weighting in ("examples", "uniform")
    )
    assert all(torch.equal(one.state["params"][name], other.state["params"][name]) for name in SHAPES)


def test_a_server_without_common_tensors_is_refused():
    headless = method()._replace(init=lambda rng: {"groups": {}})
    with pytest.raises(ConfigError, match=r"'toy' keeps no common tensors .* set privacy\.mode = 'local' or 'none'"):
        with_central_dp(headless, clip_norm=1.0, noise_multiplier=1.0).init(Rng(1))


def test_a_method_with_several_exchanges_is_refused_until_its_cost_is_known():
    fit = method().exchanges[0]
    twice = method()._replace(exchanges=(fit, fit._replace(name="again")))
    with pytest.raises(ConfigError, match=r"method 'toy' has 2 exchanges in a round \('fit', 'again'\), and only a"):
        with_central_dp(twice, clip_norm=1.0, noise_multiplier=1.0)
    assert len(with_local_dp(twice, clip_norm=1.0, noise_multiplier=1.0).exchanges) == 2


def test_no_reply_and_an_unknown_tensor_are_errors():
    merge = with_central_dp(method(), clip_norm=1.0, noise_multiplier=1.0).exchanges[0].merge
    state = {"params": {"a": torch.zeros(2)}, "releases": 0}
    with pytest.raises(RoundError, match="no replies"):
        merge(state, [])
    with pytest.raises(RoundError, match="client 1 sent tensor 'x', which the server does not have"):
        merge(state, [Reply(1, {"x": torch.zeros(2)}, 1.0)])


# Local -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1.0, 7.0, 1000.0])
def test_without_noise_a_local_reply_is_the_clipped_update(bound):
    seen = []
    played(with_local_dp(method(), clip_norm=bound, noise_multiplier=0.0), seen=seen)
    _, replies = plain_replies()
    for (order, reply), plain in zip(seen, replies, strict=True):
        before = sub(plain.params, {name: order.params[name] for name in plain.params})
        after = sub(reply.params, {name: order.params[name] for name in reply.params})
        factor = min(1.0, bound / (5.0 * (reply.client + 1)))
        assert reply.params.keys() == plain.params.keys()
        for name, change in after.items():
            torch.testing.assert_close(change, before[name] * factor, rtol=1e-4, atol=1e-6)
        assert math.sqrt(squared_norm(after)) <= bound * (1 + 1e-5)


def test_local_noise_has_the_standard_deviation_of_z_times_the_bound_in_every_reply():
    quiet, loud, bound, noise = [], [], 2.0, 1.5
    played(with_local_dp(method(), clip_norm=bound, noise_multiplier=0.0), seen=quiet)
    played(with_local_dp(method(), clip_norm=bound, noise_multiplier=noise), seen=loud)
    for (_, one), (_, other) in zip(quiet, loud, strict=True):
        added = torch.cat([(other.params[name] - one.params[name]).double().flatten() for name in one.params])
        assert float(added.std()) == pytest.approx(noise * bound, rel=5 / math.sqrt(2 * added.numel()))
        assert abs(float(added.mean())) < 5 * noise * bound / math.sqrt(added.numel())


def test_what_a_client_keeps_is_not_sent_and_not_noised():
    """Noise goes outside of what keeps the head local."""
    seen, bound = [], 1.0
    local = with_local(method(), ["head"])
    plain, noisy = {}, {}
    for wrapped, kept in ((local, plain), (with_local_dp(local, clip_norm=bound, noise_multiplier=4.0), noisy)):

        def send(exchange, orders, kept=kept):
            for client, order in orders.items():
                reply, kept[client] = perform(exchange, client, client, order, {})
                seen.append(reply)
                yield reply

        list(rounds(wrapped, lambda number: PROFILES, send, Rng(1), num_rounds=1))
    assert all("head" not in reply.params for reply in seen)
    for client in range(4):
        assert plain[client]["params"].keys() == {"head"}
        assert torch.equal(plain[client]["params"]["head"], noisy[client]["params"]["head"])


def test_central_privacy_of_a_method_with_a_local_head_covers_the_rest():
    central = with_central_dp(with_local(method(), ["head"]), clip_norm=1.0, noise_multiplier=1.0)
    (done,) = played(central)
    first = central.init(Rng(1).child("init"))["params"]
    assert torch.equal(done.state["params"]["head"], first["head"])
    assert not torch.equal(done.state["params"]["a"], first["a"])


def test_a_reply_that_holds_more_than_its_order_is_a_failed_client():
    inner = method()
    fewer = inner.exchanges[0]._replace(ask=lambda state, turn: {0: Order({"a": state["params"]["a"]})})
    local = with_local_dp(inner._replace(exchanges=(fewer,)), clip_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(RoundError, match="client 0 sent tensor 'head', which the server does not have"):
        played(local)


def test_planning_on_shapes_alone_goes_through():
    params = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    exchange = Exchange("fit", None, lambda c, o, m: (Reply(1, dict(o.params), 2.0, {"steps": 0.0}), m), None)
    local = with_local_dp(method()._replace(exchanges=(exchange,)), clip_norm=1.0, noise_multiplier=1.0)
    reply, _ = local.exchanges[0].work(1, Order(params), {})
    assert reply.params.keys() == params.keys()
    assert reply.weight == 1.0


# Where the noise comes from -----------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [with_central_dp, with_local_dp])
def test_noise_is_fresh_in_every_run_unless_a_test_key_is_given(wrapper):
    def result(**key):
        return played(wrapper(method(), clip_norm=1.0, noise_multiplier=1.0, **key), num_rounds=2)[-1].state["params"]

    assert not torch.equal(result()["a"], result()["a"])
    assert torch.equal(result(test_key=1)["a"], result(test_key=1)["a"])
    assert not torch.equal(result(test_key=1)["a"], result(test_key=2)["a"])


def test_with_a_key_rounds_and_clients_still_have_noise_of_their_own():
    quiet, loud = [], []
    for noise, seen in ((0.0, quiet), (1.0, loud)):
        played(with_local_dp(method(1e-6), clip_norm=1.0, noise_multiplier=noise, test_key=3), 1, seen)
    added = [
        (one.params["head"] - other.params["head"]).flatten() for (_, one), (_, other) in zip(loud, quiet, strict=True)
    ]
    overlap = torch.corrcoef(torch.stack(added)).fill_diagonal_(0).abs().max()
    assert float(overlap) < 0.5
    central = with_central_dp(method(1e-6), clip_norm=1.0, noise_multiplier=1.0, test_key=3)
    first, second = played(central, 2)
    start = central.init(Rng(1).child("init"))["params"]["a"]
    steps = [first.state["params"]["a"] - start, second.state["params"]["a"] - first.state["params"]["a"]]
    assert abs(float(torch.corrcoef(torch.stack([step.flatten() for step in steps]))[0, 1])) < 0.2
    assert second.state["releases"] == 2


def test_noise_moves_no_other_draw():
    seen, plain = [], []
    played(with_local_dp(method(), clip_norm=1e9, noise_multiplier=1e-12), seen=seen)
    played(method(), seen=plain)
    for (_, noisy), (_, reply) in zip(seen, plain, strict=True):
        for name in reply.params:
            torch.testing.assert_close(noisy.params[name], reply.params[name], rtol=1e-2, atol=1e-2)


def test_secret_streams_differ():
    assert len({secret().integer() for _ in range(20)}) == 20
    assert secret().child("x").integer() != secret().child("x").integer()


def test_noise_depends_on_all_128_bits_of_its_seed(monkeypatch):
    drawn = []
    for seed in (5, 5 + 2**32, 5 + 2**64, 5 + 2**127):
        monkeypatch.setattr(Rng, "integer", lambda self, bits=63, seed=seed: seed % (1 << bits))
        drawn.append(tuple(gaussian(torch.zeros(3), 1.0, noise_generator(Rng(1))).tolist()))
    assert len({*drawn}) == 4
    few = gaussian(torch.zeros(0, 2), 1.0, noise_generator(Rng(1)))
    assert (few.shape, gaussian(torch.tensor(0.0), 1.0, noise_generator(Rng(1))).shape) == ((0, 2), ())
