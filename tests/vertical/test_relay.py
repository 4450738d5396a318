"""What is relayed: all parties but one's own, zeros for a missing one, and means of copies by rows."""

import torch

from fedquilt.core.types import Order
from fedquilt.vertical.relay import OTHERS, SHOWN, averaged, others, relay_of, shared_of, with_relayed


def relay():
    parts = {0: torch.full((2, 3), 1.0)}
    return relay_of(torch.tensor([4, 7]), 2, parts, torch.full((2, 3), 3.0))


def test_a_party_is_told_of_all_others():
    assert others(relay(), 0)[0, :, 0].tolist() == [0, 3]
    assert others(relay(), 1)[0, :, 0].tolist() == [1, 3]
    assert others(relay(), -1)[0, :, 0].tolist() == [1, 0]


def test_an_order_names_the_rows_that_it_tells_of():
    order = with_relayed(Order({"prior": torch.ones(2)}, {"rows": [0]}), relay(), 0)
    assert order.settings == {"rows": [0], SHOWN: [4, 7]}
    assert order.params.keys() == {"prior", OTHERS}
    assert with_relayed(order, None, 0) is order


def test_copies_are_averaged_by_rows():
    copies = [(shared_of({"head": torch.tensor([value])}, ["head"]), rows) for value, rows in ((1.0, 1), (4.0, 2))]
    assert averaged(copies, ["head"])["head"].tolist() == [3.0]
