"""What every rule of the low-rank family promises. A new one joins by a line in RULES."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.lowrank.rules import (
    dispatched,
    gram_rule,
    merged,
    refined_rule,
    residual_rule,
    robust_pca_rule,
    rotated_rule,
    segment_rule,
    stack_rule,
    svd_rule,
)
from fedquilt.core.factors import factors
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

RULES = {
    "flexlora": svd_rule(),
    "flexlora, even": svd_rule("even"),
    "hetlora": segment_rule(),
    "hetlora, segment": segment_rule("segment"),
    "flora": stack_rule(),
    "fedex-lora": residual_rule(),
    "fedex-lora, rank 1": residual_rule(1),
    "fedex-lora, rank 0": residual_rule(0),
    "lora-fair": refined_rule(),
    "fedrot-lora": rotated_rule(),
    "florg": gram_rule(),
    "fedrpca": robust_pca_rule(),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
laws = settings(deadline=None)


def scaling(module, rank):
    return {"x": 3.0, "y": 0.5}[module] / rank


def change_of(outcome):
    """What the round added to each base weight, with what was carried over, dense."""
    total = {}
    for one in (outcome.change, outcome.carried):
        for module, product in one.items():
            b, a = (product["B"], product["A"]) if isinstance(product, dict) else product
            total[module] = total.get(module, 0) + b.double() @ a.double()
    return total


def weights(params, outcome=None):
    """The dense weights that the server's factors stand for, with the change of the base."""
    change = {} if outcome is None else change_of(outcome)
    return {
        module: scaling(module, len(a)) * b.double() @ a.double() + change.get(module, 0)
        for module, (b, a) in factors(params).items()
    }


@st.composite
def rounds(draw, echo=False, same=False):
    """``(base, replies(rule))``: the server's tensors, and what 1 to 4 clients send who hold some of the modules."""
    generator = Rng(draw(st.integers(0, 2**32)), ("family laws",)).torch()
    most = draw(st.integers(1, 4))
    sizes = {module: (draw(st.integers(1, 6)), draw(st.integers(1, 6))) for module in "xy"}

    def tensors():
        drawn = {"head": torch.randn(3, generator=generator)}
        for module, (d_out, d_in) in sizes.items():
            drawn[f"{module}.lora_A"] = torch.randn(most, d_in, generator=generator)
            drawn[f"{module}.lora_B"] = torch.randn(d_out, most, generator=generator)
        return drawn

    base, shared = tensors(), tensors()
    plans = [
        (draw(st.integers(1, most)), draw(st.sets(st.sampled_from("xy"))), draw(st.integers(1, 500)), tensors())
        for _ in range(draw(st.integers(1, 4)))
    ]

    def replies(rule):
        made = []
        for client, (rank, held, weight, own) in enumerate(plans):
            values = base if echo else shared if same else own
            values = dispatched(values, most if rule.one_rank or same else rank, scaling)
            params = {n: t.clone() for n, t in values.items() if n == "head" or n[0] in held}
            if echo and rule.fresh:
                params = {n: t * (not n.endswith("lora_B")) for n, t in params.items()}
            made.append(Reply(client, params, weight))
        return made

    return base, replies


def run(rule, base, replies):
    return merged(rule, base, iter(replies), "examples", scaling)


@every_rule
@laws
@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter_names_and_shapes_stay_and_so_do_inputs(rule, case, random):
    """Three laws of the same rounds, which take most of the time to make."""
    base, replies = case
    sent = replies(rule)
    mixed = list(sent)
    random.shuffle(mixed)
    before = [{n: t.clone() for n, t in params.items()} for params in (base, *(reply.params for reply in sent))]
    left, right = run(rule, base, sent), run(rule, base, mixed)
    ours, theirs = weights(left.params, left), weights(right.params, right)
    for module in ours:
        torch.testing.assert_close(ours[module], theirs[module], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left.params["head"], right.params["head"])
    assert_names_and_shapes_stay_and_what_nobody_sent_is_the_same_object(rule, base, sent, left)
    for old, now in zip(before, (base, *(reply.params for reply in sent)), strict=True):
        assert old.keys() == now.keys()
        assert all(torch.equal(old[name], now[name]) for name in old)


def assert_names_and_shapes_stay_and_what_nobody_sent_is_the_same_object(rule, base, sent, made):
    assert list(made.params) == list(base)
    names = {name for reply in sent for name in reply.params}
    for name, tensor in base.items():
        assert (made.params[name].shape, made.params[name].dtype) == (tensor.shape, tensor.dtype)
        assert name in names or made.params[name] is tensor
    assert all(f"{module}.lora_A" in names for module in [*made.change, *made.carried])
    assert made.change == {} or rule.changes_base


@every_rule
@laws
@given(rounds(same=True))
def test_equal_clients_are_a_fixed_point(rule, case):
    """The model becomes what all of them have; HETLoRA's too, as nobody has fewer ranks here."""
    base, replies = case
    sent = replies(rule)
    made = run(rule, base, sent)
    ours = change_of(made) if rule.fresh else weights(made.params, made)
    for reply in sent:
        for module, matrix in weights(reply.params).items():
            torch.testing.assert_close(ours[module], matrix, rtol=1e-4, atol=1e-4)


@every_rule
@laws
@given(rounds(echo=True))
def test_a_client_that_returns_what_it_received_changes_no_bit(rule, case):
    base, replies = case
    made = run(rule, base, replies(rule))
    assert made.change == {}
    assert not made.carried
    for name, tensor in base.items():
        assert torch.equal(made.params[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("name", ["flora", "fedex-lora", "fedex-lora, rank 1"])
@laws
@given(rounds())
def test_exact_methods_make_the_exact_mean_of_products(name, case):
    base, replies = case
    rule = RULES[name]
    sent = replies(rule)
    made = run(rule, base, sent)
    ours = change_of(made) if rule.fresh else weights(made.params, made)
    total, weight = {}, {}
    for reply in sent:
        for module, matrix in weights(reply.params).items():
            total[module] = total.get(module, 0) + reply.weight * matrix
            weight[module] = weight.get(module, 0) + reply.weight
    for module in total:
        torch.testing.assert_close(ours[module], total[module] / weight[module], rtol=1e-4, atol=1e-4)
