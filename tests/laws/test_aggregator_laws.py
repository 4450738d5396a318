"""What every aggregator of replies promises. A new one joins by a line in AGGREGATORS."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.robust import clipped_mean, coordinate_median, trimmed_mean
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

AGGREGATORS = {
    "mean by examples": layerwise_mean,
    "mean, uniform": partial(layerwise_mean, weighting="uniform"),
    "coordinate median": coordinate_median,
    "trimmed mean": partial(trimmed_mean, share=0.25),
    "clipped mean, no update as long": partial(clipped_mean, bound=1e6),
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}

every_aggregator = pytest.mark.parametrize("aggregate", AGGREGATORS.values(), ids=AGGREGATORS.keys())
laws = settings(deadline=None)


@st.composite
def rounds(draw, same=False):
    """A base, and replies of 1 to 5 clients that each hold some of its tensors (the same values, if ``same``)."""
    generator = Rng(draw(st.integers(0, 2**32)), ("laws",)).torch()
    dtype = draw(st.sampled_from(list(DTYPES)))
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4))
    names = [f"layers.{place}.lora_A" for place in range(len(shapes))]

    def tensors():
        return {n: torch.randn(s, generator=generator).to(dtype) for n, s in zip(names, shapes, strict=True)}

    base, shared = tensors(), tensors()
    replies = []
    for client in range(draw(st.integers(1, 5))):
        held = draw(st.sets(st.sampled_from(names)))
        values = shared if same else tensors()
        weight = draw(st.integers(1, 5000))
        replies.append(Reply(client, {name: values[name].clone() for name in names if name in held}, weight))
    return base, replies, DTYPES[dtype]


@every_aggregator
@laws
@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter_names_and_shapes_stay_and_so_do_inputs(aggregate, case, random):
    """Three laws of the same rounds, which take most of the time to make."""
    base, replies, tolerance = case
    mixed = list(replies)
    random.shuffle(mixed)
    before = {name: tensor.clone() for name, tensor in base.items()}
    sent = [{name: tensor.clone() for name, tensor in reply.params.items()} for reply in replies]
    left, right = aggregate(base, replies), aggregate(base, mixed)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)
    assert all(torch.equal(before[name], base[name]) for name in before)
    assert all(torch.equal(old[name], r.params[name]) for old, r in zip(sent, replies, strict=True) for name in old)
    assert [old.keys() for old in sent] == [reply.params.keys() for reply in replies]
    assert_names_and_shapes_stay_and_tensors_nobody_sent_are_the_same_objects(base, replies, left)


def assert_names_and_shapes_stay_and_tensors_nobody_sent_are_the_same_objects(base, replies, result):
    assert list(result) == list(base)
    sent = {name for reply in replies for name in reply.params}
    for name, tensor in base.items():
        assert result[name].shape == tensor.shape
        assert result[name].dtype == tensor.dtype
        assert (result[name] is tensor) == (name not in sent)


@every_aggregator
@laws
@given(rounds(same=True))
def test_equal_clients_are_a_fixed_point(aggregate, case):
    base, replies, tolerance = case
    result = aggregate(base, replies)
    for reply in replies:
        for name, tensor in reply.params.items():
            torch.testing.assert_close(result[name], tensor, rtol=tolerance, atol=tolerance)


@every_aggregator
@laws
@given(rounds())
def test_a_client_that_returns_what_it_received_changes_no_bit(aggregate, case):
    base, replies, _ = case
    result = aggregate(
        base, [Reply(r.client, {name: base[name].clone() for name in r.params}, r.weight) for r in replies]
    )
    for name, tensor in base.items():
        assert torch.equal(result[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@every_aggregator
@laws
@given(rounds())
def test_a_mean_lies_among_what_was_sent(aggregate, case):
    base, replies, tolerance = case
    result = aggregate(base, replies)
    for name in base:
        sent = [reply.params[name].double() for reply in replies if name in reply.params]
        if sent:
            stack = torch.stack(sent)
            assert bool((result[name].double() >= stack.amin(0) - tolerance * 4).all())
            assert bool((result[name].double() <= stack.amax(0) + tolerance * 4).all())
