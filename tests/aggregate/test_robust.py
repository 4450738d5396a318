"""Robust rules against numpy and scipy, and against clients that send whatever they like."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedquilt.aggregate import robust
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.robust import (
    RULES,
    aggregate_rule,
    clipped_mean,
    clipped_step,
    coordinate_median,
    trimmed_mean,
)
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.params import squared_norm, sub
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

laws = settings(deadline=None)
NAMES = ("layers.0.lora_A", "layers.1.lora_A", "head.weight")


def drawn(seed, clients, dtype=torch.float32, spread=1.0):
    """A base of three tensors, and replies of which each holds the head and one or two of the others."""
    generator = Rng(seed, ("robust",)).torch()

    def tensors(scale):
        return {name: (scale * torch.randn(3, 2, generator=generator)).to(dtype) for name in NAMES}

    base = tensors(1.0)
    replies = []
    for client in range(clients):
        held = [name for at, name in enumerate(NAMES) if at == 2 or (client + at) % 3]
        values = tensors(spread)
        replies.append(Reply(client, {name: values[name] for name in held}, 1.0 + client))
    return base, replies


def sent(replies, name):
    return np.stack([reply.params[name].double().numpy() for reply in replies if name in reply.params])


@laws
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_the_median_is_numpys(seed, clients):
    base, replies = drawn(seed, clients)
    result = coordinate_median(base, replies)
    for name in {name for reply in replies for name in reply.params}:
        wanted = np.median(sent(replies, name), axis=0)
        np.testing.assert_array_equal(result[name].numpy(), wanted.astype(np.float32))


@laws
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.45]))
def test_the_trimmed_mean_is_scipys(seed, clients, share):
    base, replies = drawn(seed, clients, torch.float64)
    result = trimmed_mean(base, replies, share=share)
    for name in {name for reply in replies for name in reply.params}:
        # scipy cuts int(share * k), which is one less where the product is a hair below a whole number
        values = sent(replies, name)
        exact = share + 1e-9 if share else 0.0
        np.testing.assert_allclose(result[name].numpy(), trim_mean(values, exact, axis=0), rtol=1e-12, atol=1e-12)


@laws
@given(st.integers(0, 2**32), st.integers(3, 9), st.floats(-1e30, 1e30), st.integers(0, 8))
def test_one_arbitrary_client_cannot_move_the_median_out_of_the_honest_range(seed, clients, value, which):
    base, replies = drawn(seed, clients)
    replies = [Reply(r.client, {"head.weight": r.params["head.weight"]}, r.weight) for r in replies]
    liar = which % clients
    lie = torch.full((3, 2), value)
    lied = [Reply(r.client, {"head.weight": lie}, 1e9) if r.client == liar else r for r in replies]
    result = coordinate_median(base, lied)["head.weight"]
    honest = torch.stack([r.params["head.weight"] for r in replies if r.client != liar])
    assert bool((result >= honest.amin(0)).all())
    assert bool((result <= honest.amax(0)).all())
    cut = trimmed_mean(base, lied, share=1 / 3)["head.weight"]
    assert bool((cut >= honest.amin(0) - 1e-5).all())
    assert bool((cut <= honest.amax(0) + 1e-5).all())


def test_the_mean_has_no_such_defence():
    base, replies = drawn(1, 5)
    lied = [*replies[:4], Reply(4, {"head.weight": torch.full((3, 2), 1e30)}, 1.0)]
    assert float(layerwise_mean(base, lied)["head.weight"].max()) > 1e28


@laws
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_the_order_of_clients_changes_no_bit_of_median_and_trimmed_mean(seed, clients):
    base, replies = drawn(seed, clients)
    for aggregate in (coordinate_median, partial(trimmed_mean, share=0.2)):
        one, other = aggregate(base, replies), aggregate(base, replies[::-1])
        assert all(torch.equal(one[name], other[name]) for name in base)


@laws
@given(st.integers(0, 2**32), st.integers(1, 6), st.floats(0.01, 100.0))
def test_no_update_counts_for_more_than_its_bound(seed, clients, bound):
    base, replies = drawn(seed, clients, torch.float64)
    for reply in replies:
        step = clipped_step(base, reply, bound)
        norm = math.sqrt(squared_norm(sub(reply.params, {name: base[name] for name in reply.params})))
        assert math.sqrt(squared_norm(step)) == pytest.approx(min(norm, bound), rel=1e-12)
        for name, change in step.items():
            wanted = (reply.params[name] - base[name]) * min(1.0, bound / norm)
            torch.testing.assert_close(change, wanted, rtol=1e-12, atol=1e-15)
    moved = {name: clipped_mean(base, replies, bound=bound)[name] - base[name] for name in base}
    assert max(float(change.norm()) for change in moved.values()) <= bound * (1 + 1e-9)


def test_the_clipped_mean_is_worked_by_hand():
    base = {"x": torch.tensor([1.0, 1.0]), "y": torch.tensor([0.0])}
    long = Reply(0, {"x": torch.tensor([4.0, 1.0]), "y": torch.tensor([4.0])}, 3.0)  # update (3, 0, 4): norm 5, halved
    short = Reply(1, {"x": torch.tensor([1.0, 2.0])}, 1.0)  # update (0, 1): left alone
    result = clipped_mean(base, [long, short], bound=2.5)
    torch.testing.assert_close(result["x"], torch.tensor([1 + 3 * 1.5 / 4, 1 + 1 / 4]))
    torch.testing.assert_close(result["y"], torch.tensor([2.0]))
    even = clipped_mean(base, [long, short], "uniform", bound=2.5)
    torch.testing.assert_close(even["x"], torch.tensor([1 + 1.5 / 2, 1 + 1 / 2]))


def test_huge_values_do_not_overflow():
    base = {"x": torch.zeros(1, dtype=torch.float64)}
    replies = [
        Reply(k, {"x": torch.tensor([value], dtype=torch.float64)}, 1.0) for k, value in enumerate((1.7e308,) * 2)
    ]
    assert float(coordinate_median(base, replies)["x"]) == 1.7e308


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_what_layered_methods_give_it(rule):
    base, replies = drawn(4, 5)
    aggregate = aggregate_rule(RuleSettings(rule, trim_share=0.2))
    for weighting in ("examples", "uniform"):
        result = aggregate(base, iter(replies), weighting)
        assert list(result) == list(base)
    with pytest.raises(RoundError, match="no replies to"):
        aggregate(base, [], "uniform")
    stranger = Reply(3, {"lora": torch.zeros(1)}, 1.0)
    with pytest.raises(RoundError, match="client 3 sent tensor 'lora', which the server does not have"):
        aggregate(base, [stranger], "uniform")


def test_wrong_settings_are_named():
    base, replies = drawn(4, 3)
    with pytest.raises(ConfigError, match=r"aggregation\.rule is 'krum'; it must be one of mean, median, trimmed-mean"):
        RuleSettings("krum")
    for share in (-0.1, 0.5):
        with pytest.raises(ConfigError, match=r"aggregation\.trim_share = .*must be at least 0 and below 0\.5"):
            trimmed_mean(base, replies, share=share)
    with pytest.raises(ConfigError, match=r"aggregation\.clip_norm = 0\.0: must be above 0"):
        clipped_mean(base, replies, bound=0.0)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_how_many_coordinates_are_sorted_at_a_time_changes_nothing(monkeypatch, rule, dtype):
    combine = aggregate_rule(RuleSettings(rule=rule, trim_share=0.3))
    base, replies = drawn(5, 7, dtype)
    whole = combine(base, replies, "uniform")
    for numbers in (1, 7, 21, 40):
        monkeypatch.setattr(robust, "_AT_A_TIME", numbers)
        parts = combine(base, replies, "uniform")
        assert all(torch.equal(parts[name], whole[name]) and parts[name].dtype == dtype for name in base)


def test_what_was_sent_is_not_sorted_in_place():
    base, replies = drawn(5, 7)
    before = [{name: tensor.clone() for name, tensor in reply.params.items()} for reply in replies]
    coordinate_median(base, replies)
    for reply, old in zip(replies, before, strict=True):
        assert all(torch.equal(reply.params[name], tensor) for name, tensor in old.items())
