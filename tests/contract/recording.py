"""Runs of which every order and reply is kept, and the dense changes of weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from promises import Played, Setup, play
from torch import Tensor

from fedquilt.core.factors import SHIFT, factors
from fedquilt.core.types import Order, Params, Reply

Scaling = Callable[[str, int], float]


class Sent(NamedTuple):
    """An order, the tensors that the client then used, and its reply."""

    order: Order
    used: Params
    reply: Reply


def recorded(setup: Setup, change: Callable[[Reply], Reply] = lambda reply: reply, **how) -> tuple[Played, list[Sent]]:
    """A run whose clients' replies pass through ``change``."""
    fit, sent = setup.method.exchanges[0], []

    def work(client, order, memory):
        used = client.params(order, memory)
        reply, memory = fit.work(client, order, memory)
        reply = change(reply)
        sent.append(Sent(order, used, reply))
        return reply, memory

    method = setup.method._replace(exchanges=(fit._replace(work=work), *setup.method.exchanges[1:]))
    return play(setup._replace(method=method), **how), sent


def in_round(sent: list[Sent], number: int) -> list[Sent]:
    return [one for one in sent if one.order.round == number]


def weights(params: Mapping[str, Tensor], scaling: Scaling) -> Params:
    """What is added to the base weight of every module, dense: ``s B A + shift``, in float64."""
    return {
        module: scaling(module, len(a)) * b.double() @ a.double()
        + params.get(f"{module}.{SHIFT}", torch.zeros(())).double()
        for module, (b, a) in factors(params).items()
    }


def mean_change(sent: list[Sent], scaling: Scaling) -> Params:
    """``sum_k p_k s_k B_k A_k`` of every module, over those who sent it; dense, by the definition."""
    total: Params = {}
    weight: dict[str, float] = {}
    for one in sent:
        for module, matrix in weights(one.reply.params, scaling).items():
            total[module] = total.get(module, 0.0) + one.reply.weight * matrix
            weight[module] = weight.get(module, 0.0) + one.reply.weight
    return {module: matrix / weight[module] for module, matrix in total.items()}


def gauged(seed: int = 0, *, rotated: bool = False) -> Callable[[Reply], Reply]:
    """Replies with other factors of the same products: ``B M`` and ``M^-1 A``, M drawn, orthogonal if ``rotated``."""
    generator = torch.Generator().manual_seed(seed)

    def change(reply: Reply) -> Reply:
        params = dict(reply.params)
        for module, (b, a) in factors(reply.params).items():
            m = torch.eye(len(a), dtype=torch.float64) * 1.5 + torch.rand(
                len(a), len(a), generator=generator, dtype=torch.float64
            )
            m = torch.linalg.qr(m).Q if rotated else m
            params[f"{module}.lora_B"] = (b.double() @ m).to(b.dtype)
            params[f"{module}.lora_A"] = torch.linalg.solve(m, a.double()).to(a.dtype)
        return replace(reply, params=params)

    return change
