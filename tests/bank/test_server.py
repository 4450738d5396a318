"""The server's side of the bank: its orders, and the replies that it refuses."""

from __future__ import annotations

import pytest
import torch
from small_federation import VIT, WIDE, several

from fedquilt.bank.alignment import bank_merge
from fedquilt.bank.geometry import Geometry
from fedquilt.bank.merge import COVERAGE, slots_in
from fedquilt.bank.selection import selection_of
from fedquilt.bank.server import BankServer
from fedquilt.core.errors import RoundError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply


@pytest.fixture(scope="module")
def federation():
    return several((VIT, WIDE)).federation


@pytest.fixture
def server(federation):
    shape = Geometry(federation)
    merging = bank_merge("none", sorted(federation.layouts), step=1.0, damping=0.0)
    return BankServer(shape, selection_of("leading", shape.size), merging, "learned", 0.5, 0.1)


def test_an_order_holds_the_entries_the_coverage_of_all_layers_and_what_is_trained(server):
    state, profile = server.init(Rng(5)), server.shape.profiles[0]
    order = server.order(state, profile, joint=True)
    layout = server.shape.layout(profile)
    for site, sent in slots_in(order.params).items():
        assert torch.equal(sent, state["params"][site].flatten(1))  # one rank: every client has the whole matrix
    assert float(order.params[COVERAGE].sum()) == pytest.approx(layout.num_layers)
    assert order.settings["joint"] is True
    assert server.private(order) == {*layout.names(order.settings["layers"]), *layout.head}
    assert server.expects(order).keys() == order.params.keys()


def test_one_client_alone_moves_the_bank_to_what_it_sent_and_the_round_counts(server):
    state, profile = server.init(Rng(5)), server.shape.profiles[0]
    sent = {name: tensor + 1.0 for name, tensor in server.order(state, profile, joint=True).params.items()}
    sent[COVERAGE] = torch.ones(server.shape.num_slots) / server.shape.num_slots
    after = server.merge(state, iter([Reply(0, sent, 3)]))
    for site, matrices in state["params"].items():
        torch.testing.assert_close(after["params"][site], matrices + 1.0)
    assert (state["round"], after["round"]) == (0, 1)


def test_a_reply_without_coverage_is_refused_by_name(server):
    state, profile = server.init(Rng(5)), server.shape.profiles[0]
    sent = dict(server.order(state, profile, joint=False).params)
    del sent[COVERAGE]
    with pytest.raises(RoundError, match="client 0 sent no tensor 'coverage'"):
        server.merge(state, iter([Reply(0, sent, 3)]))
