"""The rules module by module: numbers worked by hand, what nobody sent, and replies that do not fit."""

from __future__ import annotations

import pytest
import torch

from fedquilt.aggregate.lowrank.rules import RULES, dispatched, merged, residual_rule, stack_rule, svd_rule
from fedquilt.core.errors import RoundError
from fedquilt.core.types import Reply

ALPHA = 4.0


def scaling(module, rank):
    return ALPHA / rank


def pair(module, b, a):
    return {f"{module}.lora_A": torch.tensor(a), f"{module}.lora_B": torch.tensor(b)}


# server's rank 2, so scale 2; d_out 3 and d_in 2
BASE = {
    **pair("x", [[0.0, 0.0]] * 3, [[1.0, 2.0], [3.0, 4.0]]),
    **pair("y", [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]),
    "head": torch.tensor([1.0, 2.0]),
}


def outcome(rule, replies, weighting="examples", **more):
    return merged(rule, BASE, iter(replies), weighting, scaling, **more)


def change_of(product):
    return product.B @ product.A


def test_the_stack_by_hand():
    """Rank 1 has scale 4 and weight 3/4; rank 2 scale 2 and weight 1/4."""
    one = pair("x", [[1.0], [0.0], [2.0]], [[1.0, 1.0]])
    two = pair("x", [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 4.0]])
    made = outcome(stack_rule(), [Reply(0, one, 3.0), Reply(1, two, 1.0)])
    # 3/4 * 4 * [[1 1] [0 0] [2 2]] + 1/4 * 2 * [[2 0] [0 4] [0 0]]
    expected = torch.tensor([[3.0 + 1.0, 3.0], [0.0, 2.0], [6.0, 6.0]])
    assert torch.equal(change_of(made.change["x"]), expected)
    assert made.change.keys() == {"x"}
    assert all(made.params[name] is BASE[name] for name in BASE)


def test_the_stack_uniformly_weighted():
    one = pair("x", [[1.0], [0.0], [2.0]], [[1.0, 1.0]])
    two = pair("x", [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 4.0]])
    made = outcome(stack_rule(), [Reply(0, one, 3.0), Reply(1, two, 1.0)], "uniform")
    torch.testing.assert_close(change_of(made.change["x"]), torch.tensor([[4.0, 2.0], [0.0, 4.0], [4.0, 4.0]]))


def test_singular_values_by_hand():
    """The mean product is diag(8, 1) over a row of zeros: both fit in rank 2."""
    one = pair("x", [[4.0], [0.0], [0.0]], [[1.0, 0.0]])  # 4 * diag(4, 0)
    two = pair("x", [[0.0], [0.5], [0.0]], [[0.0, 1.0]])  # 4 * diag(0, 0.5)
    made = outcome(svd_rule(), [Reply(0, one, 1.0), Reply(1, two, 1.0)])
    torch.testing.assert_close(made.params["x.lora_B"], torch.tensor([[4.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(made.params["x.lora_A"], torch.eye(2))
    assert made.params["y.lora_A"] is BASE["y.lora_A"]


def test_mean_and_residual_by_hand():
    one = pair("x", [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    two = pair("x", [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])
    made = outcome(residual_rule(), [Reply(0, one, 1.0), Reply(1, two, 1.0)])
    mean = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])  # the mean product is diag(1, 1); 2 B A = this
    torch.testing.assert_close(2 * made.params["x.lora_B"] @ made.params["x.lora_A"], mean)
    torch.testing.assert_close(change_of(made.change["x"]), torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("name", RULES)
def test_what_all_return_as_it_was_sent_and_what_nobody_sent_are_the_same_objects(name):
    rule = RULES[name]()
    ranks = (2, 2) if rule.one_rank else (1, 2)
    replies = [
        Reply(k, {n: t.clone() for n, t in dispatched(BASE, rank, scaling).items() if n[0] in "yh"}, k + 1.0)
        for k, rank in enumerate(ranks)
    ]
    if rule.fresh:  # what was sent is no adapter; one that changes nothing has B at zero
        replies = [Reply(r.client, {n: t * ("_B" not in n) for n, t in r.params.items()}, r.weight) for r in replies]
    made = outcome(rule, replies)
    assert made.change == {}
    assert not made.carried
    assert all(made.params[name] is BASE[name] for name in BASE if name != "head")
    assert torch.equal(made.params["head"], BASE["head"])
    assert list(made.params) == list(BASE)


@pytest.mark.parametrize("name", RULES)
def test_the_head_is_the_mean_and_the_inputs_stay(name):
    rule = RULES[name]()
    replies = [Reply(k, {n: t + k for n, t in BASE.items()}, float(weight)) for k, weight in ((0, 1), (1, 2), (2, 1))]
    before = [{n: t.clone() for n, t in reply.params.items()} for reply in replies]
    own = {n: t.clone() for n, t in BASE.items()}
    made = outcome(rule, replies)
    assert made.params["head"].tolist() == [2.0, 3.0]
    assert all(torch.equal(b[n], r.params[n]) for b, r in zip(before, replies, strict=True) for n in b)
    assert all(torch.equal(own[n], BASE[n]) for n in BASE)
    assert all(made.params[n].shape == BASE[n].shape and made.params[n].dtype == BASE[n].dtype for n in BASE)


def test_cutting_keeps_the_product_of_what_is_left():
    cut = dispatched(BASE, 1, scaling)
    assert torch.equal(cut["y.lora_A"], BASE["y.lora_A"][:1])
    assert torch.equal(cut["y.lora_B"], BASE["y.lora_B"][:, :1] / 2)  # scale 2 becomes 4
    assert cut["head"] is BASE["head"]
    for rank in (None, 2, 7):
        assert all(tensor is BASE[name] for name, tensor in dispatched(BASE, rank, scaling).items())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x.lora_A": torch.ones(2, 2)}, "tensor 'x.lora_A' without the module's other factor"),
        (pair("x", [[1.0]] * 2, [[1.0, 1.0]]), r"tensor 'x.lora_B' as torch.float32 \(2, 1\)"),
        (pair("x", [[1.0]] * 3, [[1.0, 1.0]] * 2), "factors of 'x' with ranks 1 and 2"),
        (pair("x", [[1.0] * 3] * 3, [[1.0, 1.0]] * 3), "ranks 3 and 3; they must be equal and at most the server's 2"),
        ({"z": torch.ones(1)}, "tensor 'z', which the server does not have"),
        (pair("x", [[1]] * 3, [[1, 1]]), "as torch.int64"),
    ],
)
def test_replies_that_do_not_fit_are_refused_by_name(params, message):
    with pytest.raises(RoundError, match=f"client 4 sent.*{message}"):
        outcome(svd_rule(), [Reply(4, params, 1.0)])


def test_no_replies_are_refused():
    with pytest.raises(RoundError, match="no replies"):
        outcome(svd_rule(), [])


def test_a_rank_0_residual_carries_nothing():
    replies = [Reply(k, {n: t + k for n, t in BASE.items()}, 1.0) for k in range(2)]
    made = outcome(residual_rule(0), replies, carried={})
    assert made.change == {}
    assert made.carried == {}
    assert not residual_rule(0).changes_base
