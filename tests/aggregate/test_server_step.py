"""Server optimisers against torch.optim, with the differences that the docstrings tell, and by hand."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.server_step import adam_step, momentum_step, no_moments, yogi_step
from fedquilt.core.rng import Rng

STEPS = {"momentum": momentum_step, "adam": adam_step, "yogi": yogi_step}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
laws = settings(deadline=None)


def rounds(seed, num, dtype=torch.float64):
    """A start, and the pseudo-gradient of each round."""
    generator = Rng(seed, ("server",)).torch()
    start = {name: torch.randn(3, 2, generator=generator).to(dtype) for name in ("a", "b")}
    moves = [{name: torch.randn(3, 2, generator=generator).to(dtype) for name in start} for _ in range(num)]
    return start, moves


def played(step, start, moves, state=None):
    params, state = start, no_moments() if state is None else state
    for move in moves:
        params, state = step(params, {name: params[name] + move[name] for name in params}, state)
    return params, state


def theirs(optimiser, start, moves, **settings):
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    made = optimiser(parameters.values(), **settings)
    for move in moves:
        for name, parameter in parameters.items():
            parameter.grad = -move[name]  # the pseudo-gradient points uphill
        made.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@laws
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([0.1, 1.0]), st.sampled_from([0.0, 0.5, 0.9]))
def test_momentum_is_torchs_sgd(seed, num, rate, beta):
    start, moves = rounds(seed, num)
    ours, _ = played(partial(momentum_step, learning_rate=rate, beta=beta), start, moves)
    other = theirs(torch.optim.SGD, start, moves, lr=rate, momentum=beta)
    for name in ours:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-10, atol=1e-10)


@laws
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([0.01, 0.1]))
def test_adam_is_torchs_adam_but_for_bias_correction_and_the_first_variance(seed, num, rate):
    """Torch's step t is ours with variance 0 at first, rate times sqrt(1 - b2^t) / (1 - b1^t), tau times the root."""
    start, moves = rounds(seed, num)
    params = start
    state = {"momentum": {}, "variance": {name: torch.zeros_like(tensor) for name, tensor in start.items()}}
    for t, move in enumerate(moves, 1):
        root = math.sqrt(1 - 0.99**t)
        numbers = {"learning_rate": rate * root / (1 - 0.9**t), "tau": 1e-3 * root}
        proposal = {name: params[name] + move[name] for name in params}
        params, state = adam_step(params, proposal, state, beta1=0.9, beta2=0.99, **numbers)
    other = theirs(torch.optim.Adam, start, moves, lr=rate, betas=(0.9, 0.99), eps=1e-3)
    for name in params:
        torch.testing.assert_close(params[name], other[name], rtol=1e-9, atol=1e-10)


def one(value):
    return {"x": torch.tensor([value], dtype=torch.float64)}


def test_adam_by_hand():
    """m = 0.1 * 2, v = 0.99 * 1e-6 + 0.01 * 4; then a move of 0: m = 0.18, v = 0.99 v."""
    params, state = adam_step(one(5.0), one(7.0), no_moments(), learning_rate=0.5)
    v = 0.99e-6 + 0.04
    assert float(params["x"]) == pytest.approx(5 + 0.5 * 0.2 / (math.sqrt(v) + 1e-3), rel=1e-12)
    assert float(state["momentum"]["x"]) == pytest.approx(0.2)
    assert float(state["variance"]["x"]) == pytest.approx(v)
    still = {"x": params["x"].clone()}
    again, state = adam_step(params, still, state, learning_rate=0.5)
    assert float(again["x"] - params["x"]) == pytest.approx(0.5 * 0.18 / (math.sqrt(0.99 * v) + 1e-3), rel=1e-12)


def test_yogi_by_hand():
    """v moves by 0.01 D^2 up or down: from 1e-6 up by 0.04 (D = 2), then down by 0.01 * 0.01 (D = 0.1)."""
    params, state = yogi_step(one(5.0), one(7.0), no_moments(), learning_rate=0.5)
    v = 1e-6 + 0.04
    assert float(state["variance"]["x"]) == pytest.approx(v, rel=1e-12)
    assert float(params["x"]) == pytest.approx(5 + 0.5 * 0.2 / (math.sqrt(v) + 1e-3), rel=1e-12)
    proposal = {"x": params["x"] + 0.1}
    again, state = yogi_step(params, proposal, state, learning_rate=0.5)
    v -= 0.01 * 0.1**2
    assert float(state["variance"]["x"]) == pytest.approx(v, rel=1e-9)
    m = 0.9 * 0.2 + 0.1 * 0.1
    assert float(again["x"] - params["x"]) == pytest.approx(0.5 * m / (math.sqrt(v) + 1e-3), rel=1e-9)
    # Adam would have forgotten more: 0.99 of the old and 0.01 of the new
    _, adams = adam_step(params, proposal, {"momentum": {}, "variance": one(0.040001)})
    assert float(adams["variance"]["x"]) < float(state["variance"]["x"])


@laws
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_yogis_variance_never_falls_below_nothing(seed, num):
    start, moves = rounds(seed, num)
    _, state = played(yogi_step, start, moves)
    assert all(bool((v > 0).all()) for v in state["variance"].values())


def test_rate_one_without_momentum_is_the_proposal():
    start, (move,) = rounds(1, 1)
    proposal = {name: start[name] + move[name] for name in start}
    params, _ = momentum_step(start, proposal, no_moments(), learning_rate=1.0, beta=0.0)
    for name in params:
        torch.testing.assert_close(params[name], proposal[name], rtol=1e-15, atol=1e-15)


@every_step
@laws
@given(seed=st.integers(0, 2**32), num=st.integers(0, 3), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_state_in_state_out(step, seed, num, dtype):
    """Nothing given is changed; dtypes stay; moments are float32 at least; two halves are the whole to the bit."""
    start, moves = rounds(seed, num + 2, dtype)
    half, state = played(step, start, moves[: num + 1])
    before = [{n: t.clone() for n, t in tree.items()} for tree in (half, state["momentum"], state["variance"])]
    end, after = played(step, half, moves[num + 1 :], state)
    for tree, old in zip((half, state["momentum"], state["variance"]), before, strict=True):
        assert tree.keys() == old.keys()
        assert all(torch.equal(tree[name], old[name]) for name in old)
    assert {t.dtype for t in end.values()} == {dtype}
    assert {t.dtype for kind in after.values() for t in kind.values()} == {torch.float32}
    whole, _ = played(step, start, moves)
    assert all(torch.equal(whole[name], end[name]) for name in whole)


@every_step
def test_what_nobody_sent_stays_with_its_moments_although_momentum_is_there(step):
    start, moves = rounds(3, 1)
    params, state = played(step, start, moves)
    proposal = {"a": params["a"] + 1, "b": params["b"]}
    again, after = step(params, proposal, state)
    assert again["b"] is params["b"]
    assert not torch.equal(again["a"], params["a"])
    kinds = [kind for kind in state if state[kind]]
    assert kinds == (["momentum"] if step is momentum_step else ["momentum", "variance"])
    for kind in kinds:
        assert after[kind]["b"] is state[kind]["b"]
        assert not torch.equal(after[kind]["a"], state[kind]["a"])


@every_step
def test_clients_that_return_what_they_got_change_no_bit_at_first(step):
    start = {"x": torch.tensor([0.1, -0.0, 0.0, 1e-30, -3.3])}
    params, _ = step(start, {"x": start["x"].clone()}, no_moments())
    assert torch.equal(params["x"].view(torch.uint8), start["x"].view(torch.uint8))


@pytest.mark.parametrize(
    ("step", "numbers", "text"),
    [
        (momentum_step, {"learning_rate": 0.0}, r"learning_rate = 0\.0: must be above 0"),
        (momentum_step, {"beta": 1.0}, r"beta = 1\.0: must be at least 0 and below 1"),
        (adam_step, {"beta2": -0.1}, r"beta2 = -0\.1: must be at least 0 and below 1"),
        (yogi_step, {"tau": 0.0}, r"tau = 0\.0: must be above 0"),
    ],
)
def test_numbers_out_of_range_are_named(step, numbers, text):
    with pytest.raises(ValueError, match=text):
        step({}, {}, no_moments(), **numbers)


@every_step
def test_a_proposal_of_other_tensors_is_refused(step):
    with pytest.raises(ValueError, match=r"the proposal and the server's tensors have different names: \['y'\]"):
        step({}, {"y": torch.zeros(1)}, no_moments())
