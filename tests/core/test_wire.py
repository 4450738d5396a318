"""Tensors in fewer bits on the wire: sizes, error bounds, what clients owe, and replies that nobody trusts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedquilt.core.checks import reply_check
from fedquilt.core.defence import Defence
from fedquilt.core.errors import WireError
from fedquilt.core.loop import perform, rounds
from fedquilt.core.method import Exchange, Method, Wire
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Failure, Order, Profile, Reply
from fedquilt.core.wire import (
    WIRE,
    lengthened,
    lowered,
    num_wire_bytes,
    packed,
    raised,
    shortened,
    travelling,
    unpacked,
    with_wire_dtype,
)
from fedquilt.core.wrap import with_local

DTYPES = ("bfloat16", "int8")
laws = settings(max_examples=100, deadline=None)
TINY = torch.finfo(torch.float32).tiny
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# bfloat16 of the largest numbers of float32 is infinite, which is refused; 2^100 is large enough
numbers = arrays(
    "float32",
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def trip(tensor, dtype):
    return lengthened(*shortened(tensor, dtype))


# One tensor ------------------------------------------------------------


@laws
@given(numbers)
def test_int8_is_off_by_at_most_half_a_scale(values):
    tensor = torch.from_numpy(values)
    short, scale = shortened(tensor, "int8")
    assert short.dtype == torch.int8
    assert short.shape == tensor.shape
    assert (scale.dtype, tuple(scale.shape)) == (torch.float32, ())
    half = scale.double() / 2
    assert bool(((trip(tensor, "int8") - tensor.double()).abs() <= half * (1 + 1e-5)).all())
    largest = tensor.abs().max().item() if tensor.numel() else 0.0
    assert scale.item() == pytest.approx(max(largest / 127, TINY), rel=1e-6)


@laws
@given(numbers)
def test_bfloat16_is_off_by_at_most_one_part_in_256(values):
    tensor = torch.from_numpy(values)
    short, scale = shortened(tensor, "bfloat16")
    assert scale is None
    assert short.dtype == torch.bfloat16
    # below the smallest normal number the steps are as wide as there
    assert bool(((trip(tensor, "bfloat16") - tensor.double()).abs() <= tensor.double().abs() / 256 + TINY / 256).all())


@laws
@given(numbers, st.sampled_from(DTYPES))
def test_rounding_is_odd_keeps_zeros_and_does_nothing_to_what_is_rounded_already(values, dtype):
    tensor = torch.from_numpy(values)
    once = trip(tensor, dtype)
    assert torch.equal(trip(-tensor, dtype), -once)
    assert bool((once[tensor == 0] == 0).all())
    torch.testing.assert_close(trip(once, dtype), once, rtol=1e-5, atol=TINY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensor", [torch.zeros(3, 4), torch.zeros(()), torch.zeros(0, 5), torch.full((2,), -0.0)])
def test_nothing_comes_back_as_nothing(tensor, dtype):
    back = trip(tensor, dtype)
    assert back.shape == tensor.shape
    assert bool((back == 0).all())


@pytest.mark.parametrize("value", [1.0, -3.75, 1e-30, 5e29])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_a_tensor_of_one_value_is_as_exact_in_int8_as_its_scale(value, shape):
    torch.testing.assert_close(
        trip(torch.full(shape, value), "int8"), torch.full(shape, value).double(), rtol=1e-6, atol=0
    )


def test_int8_worked_by_hand():
    short, scale = shortened(torch.tensor([2.54, -1.27, 0.031, 0.0, 0.009]), "int8")  # the scale is 2.54 / 127 = 0.02
    assert scale.item() == pytest.approx(0.02)
    assert short.tolist() == [127, -64, 2, 0, 0]  # -1.27 / 0.02 = -63.5 and the even neighbour is -64


# A message ------------------------------------------------------------


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = {f"{str(dtype)[6:]} w": torch.randn(5, 3, generator=generator).to(dtype) for dtype in FLOATS}
    more = {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 2), "a:scale": torch.ones(2), "a": torch.ones(3)}
    return params | more | {"rows": torch.arange(4), "mask": torch.tensor([True, False]), "z": torch.ones(2) * 1j}


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_order_comes_back_in_its_own_dtypes_and_rounded(dtype):
    wire = Wire(dtype)
    order = Order(tensors(), {"layers": [1]}, 3, Rng(1))
    sent = lowered({7: order}, wire)[7]
    back = raised(sent, wire)
    assert replace(back, params={}) == replace(order, params={})
    assert [*back.params] == [*order.params]
    for name, tensor in order.params.items():
        assert back.params[name].dtype == tensor.dtype
        assert back.params[name].shape == tensor.shape
        if tensor.dtype in FLOATS:
            assert sent.params[f"{name}:{str(tensor.dtype)[6:]}"].dtype == getattr(torch, dtype)
            torch.testing.assert_close(back.params[name], tensor, rtol=1 / 128, atol=0.02)
        else:
            assert torch.equal(back.params[name], tensor)
    form = travelling(order.params, wire)
    assert {n: (t.dtype, t.shape) for n, t in form.items()} == {n: (t.dtype, t.shape) for n, t in sent.params.items()}
    assert all(tensor.is_meta for tensor in form.values())
    assert num_wire_bytes(order.params, wire) == num_bytes(sent.params)
    assert num_wire_bytes(order.params, None) == num_bytes(order.params)


def test_what_all_clients_are_sent_is_rounded_once():
    shared = {"a": torch.randn(3), "b": torch.randn(3)}
    sent = lowered({0: Order(shared), 1: Order({**shared, "b": torch.zeros(3)})}, Wire("int8"))
    assert sent[0].params["a:float32"] is sent[1].params["a:float32"]
    assert not torch.equal(sent[0].params["b:float32"], sent[1].params["b:float32"])


def test_a_realistic_lora_set_takes_a_quarter_in_int8_and_half_in_bfloat16():
    lora = {f"layers.{i}.{m}.lora_{f}": torch.empty((16, 768) if f == "A" else (768, 16), device="meta")
            for i in range(12) for m in "qv" for f in "AB"}  # fmt: skip
    params = lora | {"head.weight": torch.empty(10, 768, device="meta"), "head.bias": torch.empty(10, device="meta")}
    full = num_bytes(params)
    assert full / 4 < num_wire_bytes(params, Wire("int8")) <= 0.251 * full
    assert num_wire_bytes(params, Wire("bfloat16")) == full / 2
    meta = Order(params)
    reply, owing = packed(meta, Reply(0, params, 1.0), {}, Wire("int8"))  # shapes without numbers go through it too
    assert num_bytes(reply.params) == num_wire_bytes(params, Wire("int8"))
    assert owing.keys() == params.keys()
    assert unpacked(meta, reply, Wire("int8")).params.keys() == params.keys()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_that_was_not_sent_is_rounded_as_it_is_and_nothing_is_owed(dtype):
    wire = Wire(dtype)
    order = Order({"a": torch.full((2,), 9.0), "other": torch.zeros(3)})
    logits = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(4, 3)
    reply = Reply(0, {"logits": logits, "other": logits, "rows": torch.arange(4)}, 2.0, {"loss": 0.5}, 4)
    sent, owing = packed(order, reply, {}, wire)
    back = unpacked(order, sent, wire)
    assert owing == {}
    assert replace(back, params={}) == replace(reply, params={})
    assert torch.equal(back.params["rows"], torch.arange(4))
    for name in ("logits", "other"):
        assert back.params[name].dtype == torch.float64
        assert torch.equal(back.params[name], trip(logits, dtype))


@laws
@given(numbers, st.sampled_from(DTYPES))
def test_who_changes_nothing_leaves_every_bit_of_the_servers_tensor(values, dtype):
    wire = Wire(dtype)
    theta = torch.cat([torch.from_numpy(values).flatten(), torch.tensor([-0.0, 1e-44, 0.1])])
    order = Order({"w": theta})
    seen = raised(lowered({0: order}, wire)[0], wire)
    sent, owing = packed(seen, Reply(0, seen.params, 1.0), {}, wire)
    back = unpacked(order, sent, wire).params["w"]
    assert torch.equal(back.view(torch.int32), theta.view(torch.int32))
    assert not owing["w"].any()


# What is owed ------------------------------------------------------------


def test_a_clients_debt_worked_by_hand():
    """Updates 12.7 and 0.04 each round: the scale is 0.1, so 0.04 is nothing until 0.08 of it have come up."""
    wire, order, owed, sums = Wire("int8"), Order({"w": torch.tensor([100.0, 200.0])}), {}, []
    step, arrived = torch.tensor([12.7, 0.04]), torch.zeros(2, dtype=torch.float64)
    for _ in range(5):
        sent, owed = packed(order, Reply(0, {"w": order.params["w"] + step}, 1.0), owed, wire)
        arrived = arrived + unpacked(order, sent, wire).params["w"] - order.params["w"]
        sums.append(arrived[1].item())
    # owed: 0.04; 0.08 -> 0.1 is sent, -0.02 owed; 0.02; 0.06 -> 0.1 is sent, -0.04 owed; 0
    assert sums == pytest.approx([0.0, 0.1, 0.1, 0.2, 0.2], abs=1e-4)
    assert owed["w"].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert arrived[0].item() == pytest.approx(5 * 12.7, abs=1e-3)


@laws
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(DTYPES), st.floats(1e-6, 1e3))
def test_what_arrives_sums_up_to_what_was_done_less_the_last_debt(seed, num_rounds, dtype, size):
    wire, owed = Wire(dtype), {}
    generator = torch.Generator().manual_seed(seed)
    done = arrived = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(num_rounds):
        theta = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        update = size * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        order = Order({"w": theta})
        sent, owed = packed(order, Reply(0, {"w": theta + update}, 1.0), owed, wire)
        ((value),) = unpacked(order, sent, wire).params.values()
        done, arrived = done + update, arrived + (value - theta)
    torch.testing.assert_close(arrived, done - owed["w"], rtol=1e-9, atol=1e-9)
    short = sent.params["w:float64"]
    last = lengthened(short, sent.params.get("w:scale")).abs()
    bound = last.max() / 127 / 2 if dtype == "int8" else last / 256
    assert bool((owed["w"].abs() <= bound * 1.02 + 1e-12).all()), "one rounding is owed, however many there were"


def test_without_feedback_nothing_is_owed_and_every_reply_stands_for_itself():
    wire, order = Wire("int8", feedback=False), Order({"w": torch.zeros(2)})
    reply = Reply(0, {"w": torch.tensor([12.7, 0.04])}, 1.0)
    first, owing = packed(order, reply, {}, wire)
    assert owing == {}
    assert unpacked(order, first, wire).params["w"].tolist() == pytest.approx([12.7, 0.0])
    second, owing = packed(order, reply, {"w": torch.tensor([0.0, 5.0])}, wire)
    assert owing == {}
    assert torch.equal(second.params["w:float32"], first.params["w:float32"])


def test_a_debt_of_a_layer_waits_until_that_layer_is_trained_again():
    wire, order = Wire("int8"), Order({"a": torch.zeros(2), "b": torch.zeros(2)})
    step = torch.tensor([12.7, 0.04])
    _, owed = packed(order, Reply(0, {"a": step}, 1.0), {}, wire)
    _, later = packed(order, Reply(0, {"b": step}, 1.0), owed, wire)
    assert torch.equal(later["a"], owed["a"])
    assert owed["a"].tolist() == pytest.approx([0, 0.04], abs=1e-5)
    sent, after = packed(order, Reply(0, {"a": step}, 1.0), later, wire)
    assert unpacked(order, sent, wire).params["a"][1].item() == pytest.approx(0.1)
    assert after["a"][1].item() == pytest.approx(-0.02, abs=1e-5)


# In the loop ------------------------------------------------------------

PROFILES = tuple(Profile(k, 10, "toy", Budget(1), "toy") for k in range(3))
TARGETS = {k: torch.linspace(-1, 1, 30) * (k + 1) for k in range(3)}


def toy(share=0.3, start=0.1) -> Method:
    """Client k moves its tensor a share of the way to its target; the server takes the mean of the updates."""

    def init(rng):
        return {"params": {"w": torch.full((30,), start), "head": torch.zeros(2)}}

    def ask(state, turn):
        return {profile.id: Order(state["params"]) for profile in turn.cohort}

    def work(client, order, memory):
        assert WIRE not in memory
        w = order.params["w"]
        reply = Reply(client, {"w": w + share * (TARGETS[client] - w), "head": torch.full((2,), 1.0)}, 1.0)
        return reply, {**memory, "rounds": memory.get("rounds", 0) + 1}

    def merge(state, replies):
        steps = [{n: t - state["params"][n] for n, t in reply.params.items()} for reply in replies]
        mean = {n: sum(step[n] for step in steps) / len(steps) for n in steps[0]}
        return {"params": {n: t + mean[n] if n in mean else t for n, t in state["params"].items()}}

    def expects(order):
        return order.params

    return Method("toy", init, (Exchange("fit", ask, work, merge, expects),), lambda s, p: Order(s["params"]))


def played(method, num_rounds, memories=None, state=None, start=0, check=None, spoil=None):
    memories = {} if memories is None else memories

    def send(exchange, orders):
        for client, order in orders.items():
            reply, memories[client] = perform(exchange, client, client, order, memories.get(client, {}))
            yield spoil(reply) if spoil and client == 0 else reply

    return [
        *rounds(method, lambda t: PROFILES, send, Rng(1), num_rounds=num_rounds, state=state, start=start, check=check)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rounded_federation_ends_where_the_full_one_does_and_moves_fewer_bytes(dtype):
    full, short = played(toy(), 30), played(with_wire_dtype(toy(), dtype), 30)
    torch.testing.assert_close(short[-1].state["params"], full[-1].state["params"], rtol=0, atol=0.01)
    size = {"bfloat16": 64, "int8": 40}[dtype]
    for done in short:
        assert done.traffic[0].bytes_down == done.traffic[0].bytes_up == dict.fromkeys(range(3), size)
        assert done.state["params"]["w"].dtype == torch.float32


def test_downward_rounding_leaves_no_trace_on_the_server():
    """The server holds what int8 cannot, clients change nothing, and the state stays to the bit."""
    state = {"params": {"w": torch.linspace(-1, 1, 30) ** 3, "head": torch.tensor([1 / 3, -1 / 7])}}
    still = toy()._replace(
        exchanges=(toy().exchanges[0]._replace(work=lambda c, order, m: (Reply(c, order.params, 1.0), m)),)
    )
    for dtype in DTYPES:
        end = played(with_wire_dtype(still, dtype), 5, state=state)[-1].state["params"]
        for name, tensor in state["params"].items():
            assert torch.equal(end[name].view(torch.int32), tensor.view(torch.int32))


def test_the_debt_lies_in_a_part_of_the_memory_of_its_own_and_survives_a_stop():
    method, memories = with_wire_dtype(with_local(toy(), ["head"]), "int8"), {}
    whole = played(method, 6, memories)
    for memory in memories.values():
        assert memory.keys() == {"params", "rounds", WIRE}
        assert memory["params"].keys() == {"head"}
        assert memory["rounds"] == 6
        assert memory[WIRE].keys() == {"fit"}
        assert memory[WIRE]["fit"].keys() == {"w"}
        assert memory[WIRE]["fit"]["w"].any()
    halfway = {}
    half = played(method, 3, halfway)
    rest = played(method, 6, dict(halfway), half[-1].state, start=3)
    assert torch.equal(rest[-1].state["params"]["w"], whole[-1].state["params"]["w"])
    forgotten = played(method, 6, {}, half[-1].state, start=3)
    assert not torch.equal(forgotten[-1].state["params"]["w"], whole[-1].state["params"]["w"])


def test_debts_of_two_exchanges_do_not_mix():
    (fit,) = toy().exchanges
    method, memories = toy()._replace(exchanges=(fit, fit._replace(name="again"))), {}
    played(with_wire_dtype(method, "int8"), 2, memories)
    assert memories[0][WIRE].keys() == {"fit", "again"}
    assert not torch.equal(memories[0][WIRE]["fit"]["w"], memories[0][WIRE]["again"]["w"])


def test_a_client_whose_numbers_have_no_short_form_fails_and_owes_what_it_did():
    (exchange,) = with_wire_dtype(toy(), "int8").exchanges
    big = exchange._replace(
        work=lambda c, o, m: (Reply(c, {"w": torch.full((30,), 1e300, dtype=torch.float64)}, 1.0), m)
    )
    sent = lowered({0: Order({"w": torch.zeros(30, dtype=torch.float64)})}, Wire("int8"))[0]
    memory = {WIRE: {"fit": {"w": torch.ones(30)}}}
    failure, after = perform(big, 0, 0, sent, memory)
    assert failure == Failure(0, "tensor 'w:scale' is not finite")
    assert after is memory


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: {}, "tensor 'w' is missing"),
        (lambda p: p | {"w:float32": p["w:float32"][:3]}, "tensor 'w' has shape (3,), not (30,)"),
        (lambda p: p | {"more:float32": p["w:float32"], "more:scale": p["w:scale"]}, "tensor 'more' was not asked for"),
        (lambda p: {("w:float64" if n == "w:float32" else n): t for n, t in p.items()}, "'w' is torch.float64, not"),
        (
            lambda p: p | {"w:float32": p["w:float32"].float()},
            "'w:float32' travelled as torch.float32, not int8; both",
        ),
        (lambda p: p | {"w:float32": p["w:float32"].bfloat16()}, "'w:float32' travelled as torch.bfloat16"),
        (lambda p: {n: t for n, t in p.items() if n != "w:scale"}, "'w:float32' came without a scale of one float32"),
        (lambda p: p | {"w:scale": torch.ones(30)}, "'w:float32' came without a scale of one float32"),
        (lambda p: p | {"w:scale": p["w:scale"].double()}, "'w:float32' came without a scale of one float32"),
        (lambda p: {n: t for n, t in p.items() if n != "w:float32"}, "'w:scale' came without its tensor"),
        (lambda p: p | {"w:float64": p["w:float32"]}, "tensor 'w' came twice"),
        (lambda p: p | {"w": torch.ones(30)}, "tensor 'w' is torch.float32, which is not what its name says"),
        (
            lambda p: p | {"x:int64": torch.ones(3)},
            "tensor 'x:int64' is torch.float32, which is not what its name says",
        ),
        (lambda p: p | {"w:scale": torch.tensor(math.inf)}, "tensor 'w' is not finite"),
        (lambda p: p | {"w:scale": torch.tensor(math.nan)}, "tensor 'w' is not finite"),
        (lambda p: p | {"w:scale": torch.tensor(3e38)}, "tensor 'w' is not finite"),
        (lambda p: p | {"w:scale": torch.tensor(1e6)}, "the update's norm is"),
    ],
)
def test_a_reply_is_checked_in_the_form_it_has_for_merge(spoil, reason):
    check = reply_check(PROFILES, Defence(max_update_norm=100.0, max_reply_bytes=200))
    method = with_wire_dtype(toy(), "int8")
    (done,) = played(method, 1, check=check, spoil=lambda r: replace(r, params=spoil(r.params)))
    assert [*done.traffic[0].dropped] == [0]
    assert reason in done.traffic[0].dropped[0]
    assert done.traffic[0].bytes_up.keys() == {1, 2}
    assert not played(method, 3, check=check)[-1].traffic[0].dropped


def test_the_largest_reply_is_counted_as_it_travelled():
    for bound, dropped in ((40, 0), (39, 3)):
        check = reply_check(PROFILES, Defence(max_reply_bytes=bound))
        if not dropped:
            assert not played(with_wire_dtype(toy(), "int8"), 1, check=check)[0].traffic[0].dropped
            continue
        with pytest.raises(Exception, match="client 2: 40 bytes of tensors; at most 39 are allowed"):
            played(with_wire_dtype(toy(), "int8"), 1, check=check)


def test_a_client_refuses_an_order_of_another_form():
    (exchange,) = with_wire_dtype(toy(), "bfloat16").exchanges
    sent = lowered({0: Order({"w": torch.zeros(30)})}, Wire("int8"))[0]
    failure, memory = perform(exchange, 0, 0, sent, {"rounds": 1})
    assert failure == Failure(
        0, "tensor 'w:float32' travelled as torch.int8, not bfloat16; both sides need one network.dtype"
    )
    assert memory == {"rounds": 1}
    scaled = replace(sent, params={"w:float32": torch.zeros(3).bfloat16(), "w:scale": torch.ones(())})
    with pytest.raises(WireError, match="came with a scale, and bfloat16 has none"):
        raised(scaled, Wire("bfloat16"))


def test_other_types_are_refused_by_name():
    with pytest.raises(ValueError, match="cannot travel as 'int4'; allowed: bfloat16, int8"):
        with_wire_dtype(toy(), "int4")
