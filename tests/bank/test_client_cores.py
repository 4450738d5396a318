"""What a client's cores are made of, and what goes back of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import LLAMA, VIT, small, workbench

from fedquilt.bank.client_cores import RELATION, middle_of, model_with_cores
from fedquilt.bank.relation import depth_logits, depth_slots, lifted, relation, top_aligned
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order

LEARNED = {"relation": "learned", "width": 0.5}
laws = settings(max_examples=60, deadline=None)


def slots(num_slots=5, k=4, seed=0):
    generator = Rng(seed, ("slots",)).torch()
    return {f"bank.{site}": torch.randn(num_slots, k, generator=generator) for site in ("query", "value")}


def middle(order, memory=None, bench=None):
    bench = bench or workbench()
    return middle_of(order, memory or {}, bench.layout, rank=2)


@pytest.mark.parametrize("num_slots", [2, 4, 7])
@pytest.mark.parametrize("k", [1, 4])
def test_h2_4_every_core_is_the_clients_mean_of_the_slots(num_slots, k):
    """H2-4. In the released code what the server sends is dropped on arrival, for its name (B1)."""
    scene = small(LLAMA, budgets=(1, 2, 3))
    client, sent = scene.clients[1], slots(num_slots, k)
    logits = depth_logits(3, num_slots) + torch.randn(num_slots, 3, generator=Rng(1).torch())
    order = Order({**sent, "coverage": torch.ones(num_slots)}, LEARNED)
    memory = {"params": {RELATION: logits}}
    params = model_with_cores(client.profile, client.initial, order, memory, layout=client.bench.layout, rank=2)
    shares, width = relation(logits), round(k**0.5)
    for layer in range(3):
        for name, site in (("q_proj", "query"), ("v_proj", "value")):
            core = params[f"model.layers.{layer}.self_attn.{name}.core"]
            expected = torch.zeros(2, 2)
            for slot in range(num_slots):
                expected[:width, :width] += shares[slot, layer] * sent[f"bank.{site}"][slot].view(width, width)
            torch.testing.assert_close(core, expected, rtol=0, atol=1e-6)
    assert not any(name.startswith("bank.") or name == "coverage" or name == RELATION for name in params)
    client.bench.load(params)  # and this is what it is scored with


def test_the_relation_is_by_depth_at_first_then_its_own_and_may_be_fixed():
    bench, order = workbench(), slots()
    assert torch.equal(middle(Order(order, LEARNED), None, bench).tensors[RELATION], depth_logits(4, 5, 0.5))
    wide = middle(Order(order, {"relation": "learned", "width": 2.0}), None, bench)
    assert torch.equal(wide.relation(wide.tensors), relation(depth_logits(4, 5, 2.0)))
    own = torch.randn(5, 4, generator=Rng(3).torch())
    assert torch.equal(middle(Order(order, LEARNED), {"params": {RELATION: own}}, bench).tensors[RELATION], own)
    for kind, fixed in (("top", top_aligned(4, 5)), ("slots", depth_slots(4, 5))):
        made = middle(Order(order, {"relation": kind, "width": 0.5}), {"params": {RELATION: own}}, bench)
        assert RELATION not in made.tensors
        assert torch.equal(made.relation(made.tensors), fixed)


@laws
@given(st.integers(0, 2**32), st.integers(2, 7), st.sets(st.integers(0, 3), min_size=1))
def test_h2_3_nothing_learned_goes_back_as_it_came(seed, num_slots, layers):
    """H2-3. In the released code a round trip keeps a third of the bank (B4)."""
    sent = slots(num_slots, seed=seed)
    made = middle(Order(sent, LEARNED), {"params": {RELATION: torch.randn(num_slots, 4, generator=Rng(seed).torch())}})
    back, coverage = made.returned(made.tensors, layers)
    assert all(torch.equal(back[site], sent[f"bank.{site}"]) for site in back)
    torch.testing.assert_close(coverage.sum(), torch.tensor(float(len(layers))))


@laws
@given(st.integers(0, 2**32), st.sets(st.integers(0, 3), min_size=1))
def test_what_goes_back_is_what_these_layers_learned_and_no_others(seed, layers):
    generator = Rng(seed).torch()
    made = middle(Order(slots(), LEARNED))
    tensors = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in made.tensors.items()}
    back, coverage = made.returned(tensors, layers)
    shares = relation(tensors[RELATION])[:, sorted(layers)]
    for site, slot in back.items():
        expected = made.slots[site] + lifted(tensors[f"change.{site}"][sorted(layers)], shares)
        torch.testing.assert_close(slot, expected)
    torch.testing.assert_close(coverage, shares.sum(1))
    others = [layer for layer in range(4) if layer not in layers]
    for site in back:
        tensors[f"change.{site}"][others] = 99.0
    again, _ = made.returned(tensors, layers)
    assert all(torch.equal(again[site], back[site]) for site in back)


def test_h2_10_cores_carry_gradients_to_changes_and_relation():
    """H2-10. In the released code relation and selection are read outside the graph (B6)."""
    bench = workbench(VIT)
    made = middle(Order(slots(), LEARNED), None, bench)
    leaves = {name: tensor.clone().requires_grad_(True) for name, tensor in made.tensors.items()}
    sum(core.square().sum() for core in made.cores(leaves).values()).backward()
    assert all(bool(leaf.grad.abs().min() > 0) for leaf in leaves.values() if leaf.dim() == 2 and leaf.grad is not None)
    assert leaves[RELATION].grad is not None
