"""Tensors that a client keeps within a round: marked, put back, refused where they are not there."""

import pytest
import torch

from fedquilt.core.errors import WireError
from fedquilt.core.held import HELD, keeping, with_held, without_held
from fedquilt.core.types import Order


def order(**params):
    return Order({name: torch.tensor(values) for name, values in params.items()}, round=3)


def test_what_is_the_same_to_the_bit_is_not_sent_again():
    first, second = order(a=[1.0, 2.0], b=[3.0]), order(a=[1.0, 2.0], b=[4.0], c=[5.0])
    sent = without_held(second, first.params)
    assert list(sent.params) == ["a:held", "b", "c"]
    assert sent.params["a:held"].numel() == 0
    back = with_held(sent, keeping({"params": 1}, first))
    assert list(back.params) == ["a", "b", "c"]
    assert all(torch.equal(back.params[name], second.params[name]) for name in second.params)
    assert keeping({"params": 1}, first).keys() == {"params", HELD}


@pytest.mark.parametrize(
    "other", [torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, -2.0]), torch.tensor([-0.0, 2.0])]
)
def test_any_other_tensor_is_sent(other):
    assert list(without_held(Order({"a": other}), {"a": torch.tensor([0.0, 2.0])}).params) == ["a"]


def test_what_a_client_does_not_hold_is_no_order():
    sent = without_held(order(a=[1.0]), order(a=[1.0]).params)
    with pytest.raises(WireError, match="the client does not hold 'a'"):
        with_held(sent, {})
    with pytest.raises(WireError, match="does not hold"):
        with_held(sent, keeping({}, Order(order(a=[1.0]).params, round=2)))
