"""A federation that is convex: networks of unlike width, depth and rank with fixed ends, whose cores alone are learned.

For the laws of H2Tune and for the plot of its convergence (``experiments/h2tune/convergence.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedquilt.adapters.lora.core import cores, with_cores
from fedquilt.adapters.lora.module import LoraLinear, initial_factors
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.sites import Place
from fedquilt.bank.merge import BankUpdate, drawn_bank, merged_bank, offered
from fedquilt.bank.relation import depth_logits, lifted, lowered, relation
from fedquilt.bank.selection import leading
from fedquilt.core.rng import Rng

SLOTS, SIZE = 3, 6
SHAPES = ((8, 2, 3), (12, 3, 4), (10, 3, 6))  # width, depth and rank of each client's network


@dataclass
class Toy:
    """One client: a chain of linear layers with frozen ends, and rows that its true core has labelled."""

    net: nn.Sequential
    entries: Tensor
    logits: Tensor
    rank: int
    rows: Tensor
    wanted: Tensor

    @property
    def adapters(self) -> dict[str, LoraLinear]:
        return {str(number): layer for number, layer in enumerate(self.net)}

    @property
    def places(self) -> dict[str, Place]:
        return {str(number): Place("query", number) for number in range(len(self.net))}

    def out(self, values: Tensor) -> Tensor:
        """All layers see the same rows, so that the loss is convex in the values, ``(num_layers, k)``."""
        with with_cores(self.adapters, cores({"query": values}, self.places, self.rank)):
            return torch.stack([layer(self.rows) for layer in self.net])

    def loss(self, values: Tensor) -> Tensor:
        return (self.out(values) - self.wanted).square().mean()

    def received(self, bank) -> Tensor:
        return lowered(offered(bank, {"query": self.entries})["query"], relation(self.logits))


def toy(number: int, truth, lines=leading) -> Toy:
    width, depth, rank = SHAPES[number]
    rng = Rng(9, ("client", number))
    with rng.scope():
        settings = LoraSettings(rank=rank, alpha=2.0 * rank)
        net = nn.Sequential(*(LoraLinear(nn.Linear(width, width), settings) for _ in range(depth))).eval()
        for layer in net:
            layer.lora_B.data = torch.randn(width, rank) / rank
        rows = torch.randn(32, width)
    for place, layer in enumerate(net):
        layer.lora_A.data = initial_factors(f"layer{place}", width, width, rank, rng)[0]
    entries = lines(rank, SIZE).entries(SIZE)
    made = Toy(net, entries, depth_logits(depth, SLOTS), rank, rows, torch.zeros(()))
    made.wanted = made.out(made.received(truth)).detach()
    return made


def trained(client: Toy, number: int, bank, steps: int = 4, rate: float = 2.0) -> BankUpdate:
    """What a client would have that took some steps on its core, from what the server sent."""
    base = client.received(bank).detach()
    change = torch.zeros_like(base, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(client.loss(base + change), change)
        change.data -= rate * gradient
    shares, held = relation(client.logits), {"query": client.entries}
    wanted = offered(bank, held)["query"] + lifted(change.detach(), shares)
    return BankUpdate(number, {"query": wanted}, held, shares.sum(1), 32)


def federated(clients, rounds: int, steps: int = 4):
    """Losses of all clients before each round, and the bank at the end."""
    bank, losses = drawn_bank(("query",), SLOTS, SIZE, Rng(0)), []
    for _ in range(rounds):
        losses.append(sum(float(client.loss(client.received(bank)).detach()) for client in clients))
        bank = merged_bank(bank, (trained(client, number, bank, steps) for number, client in enumerate(clients)))
    return losses, bank
