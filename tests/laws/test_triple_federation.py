"""Adapters, relation and bank put together on toy networks of unlike width, depth and rank, without any engine."""

from itertools import pairwise

import pytest
import torch
from core_toy import SHAPES, SIZE, SLOTS, federated, toy, trained

from fedquilt.bank.merge import as_large, drawn_bank, merged_bank, offered
from fedquilt.bank.relation import lowered, relation
from fedquilt.bank.selection import drawn, leading
from fedquilt.core.rng import Rng


@pytest.fixture(scope="module")
def truth():
    return drawn_bank(("query",), SLOTS, SIZE, Rng(5), 1.0)


def test_unlike_clients_learn_one_bank_at_the_rate_that_is_promised(truth):
    """Convex, so at worst O(1/sqrt(T)): the loss times sqrt(T) may not grow, and here it falls to a hundredth."""
    losses, _ = federated([toy(number, truth) for number in range(3)], 60)
    scaled = [loss * (t + 1) ** 0.5 for t, loss in enumerate(losses)]
    assert max(scaled[1:]) <= scaled[0]
    assert losses[-1] < 0.01 * losses[0]
    assert all(later <= earlier * 1.0001 for earlier, later in pairwise(losses))


def test_a_client_that_never_trained_gains_from_what_the_others_learned_and_nothing_from_noise(truth):
    """The released code is the noise: what it sends is P P^T of a random bank, and dropped on arrival (B1, B2, B3)."""
    clients = [toy(number, truth) for number in range(3)]
    _, bank = federated(clients[:2], 60)
    newcomer = clients[2]

    def loss(of):
        return float(newcomer.loss(newcomer.received(of)).detach())

    untouched = loss(drawn_bank(("query",), SLOTS, SIZE, Rng(0)))
    assert loss(bank) < 0.9 * untouched
    noises = [as_large(drawn_bank(("query",), SLOTS, SIZE, Rng(seed), 1.0), bank) for seed in range(5)]
    assert min(loss(noise) for noise in noises) > loss(bank)


def test_h2_3_clients_that_take_no_step_leave_the_bank_to_the_bit(truth):
    """H2-3. Idle clients destroy the released code's bank (B4)."""
    clients = [toy(number, truth) for number in range(3)]
    updates = [trained(client, number, truth, steps=0) for number, client in enumerate(clients)]
    assert torch.equal(merged_bank(truth, updates)["query"], truth["query"])


def test_h2_18_two_runs_end_in_the_same_bits(truth):
    """H2-18. The released code's runs share no seed, and each client its own bank (B5)."""
    ends = [federated([toy(number, truth) for number in range(3)], 3)[1]["query"] for _ in range(2)]
    assert torch.equal(*ends)


def test_drawn_parts_learn_too(truth):
    lines = {shape[2]: Rng(3).child("entries", number) for number, shape in enumerate(SHAPES)}
    clients = [toy(number, truth, lambda rank, size: drawn(rank, size, lines[rank])) for number in range(3)]
    assert not torch.equal(clients[0].entries, leading(3, SIZE).entries(SIZE))
    losses, _ = federated(clients, 30)
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("number", range(3))
def test_h2_10_the_loss_reaches_relation_and_change_once_the_bank_and_b_are_not_zero(truth, number):
    """H2-10. In the released code neither gets a gradient of the task: both are read outside the graph (B6)."""
    client = toy(number, truth)
    client.wanted = torch.zeros_like(client.wanted)
    logits = client.logits.clone().requires_grad_(True)
    change = torch.zeros(len(client.net), client.rank**2, requires_grad=True)

    def gradients(bank):
        received = lowered(offered(bank, {"query": client.entries})["query"], relation(logits))
        return torch.autograd.grad(client.loss(received + change), (logits, change))

    to_relation, to_change = gradients(truth)
    assert float(to_relation.abs().max()) > 1e-5
    assert float(to_change.abs().min()) > 0
    # nothing flows to the relation while all slots hold the same, but the change is free at once
    to_relation, to_change = gradients(drawn_bank(("query",), SLOTS, SIZE, Rng(0)))
    assert not to_relation.any()
    assert float(to_change.abs().min()) > 0


def test_the_gradient_to_the_relation_is_that_of_finite_differences(truth):
    client = toy(1, truth)
    client.wanted = torch.zeros_like(client.wanted)
    logits = client.logits.clone().requires_grad_(True)
    part = offered(truth, {"query": client.entries})["query"]

    def loss(of):
        return client.loss(lowered(part, relation(of)))

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    for place in ((0, 0), (1, 2), (2, 1)):
        step = torch.zeros_like(logits)
        step[place] = 1e-2
        difference = float((loss(logits + step) - loss(logits - step)).detach()) / 2e-2
        assert difference == pytest.approx(float(gradient[place]), rel=0.02, abs=2e-4)
