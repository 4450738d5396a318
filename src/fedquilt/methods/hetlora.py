"""HETLoRA: clients of unlike rank, which prune themselves; the server weighs them by the size of what they learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import Product
from fedquilt.aggregate.lowrank.rules import dispatched, segment_rule
from fedquilt.aggregate.lowrank.segment import pruned_rank, tail
from fedquilt.allocate.layers import Shape
from fedquilt.client.fit import METRICS
from fedquilt.core.factors import factors, named
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Kept, Penalty, Rank, Unless
from fedquilt.core.types import Federation, Memory, Order, Params, Profile, Range, Reply, Tree
from fedquilt.core.worker import Worker
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=segment_rule())

_PRUNED = Unless("gamma", 1.0)


def hetlora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    normalize: Literal["all", "segment"] = "all",
    gamma: Kept = 0.99,
    min_rank: Annotated[Rank, _PRUNED] = 1,
    tail_penalty: Annotated[Penalty, _PRUNED] = 0.0,
    weighting: Weighting = "examples",
) -> Method:
    """Client k is sent the first ``r_k`` columns of B and rows of A; the server pads with zeros and takes the mean,
    client k weighing as ``||s_k B_k A_k||``.

    A client whose tail, what is beyond rank ``floor(gamma r_k)``, shrank in training goes on with that lower rank, but
    none below ``min_rank``; ``gamma`` 1 prunes nothing. ``tail_penalty`` times the tail is added to the client's loss,
    the paper's lambda. ``normalize`` is over whom the mean is taken of the ranks that
    not all clients hold: all, or those that hold them. ``weighting`` is that of the head. As many layers as the poorest
    client affords.

    Paper: hetlora, method
    """

    def ranks(state: Tree, profile: Profile) -> int | None:
        now: int | None = state["ranks"].get(str(profile.id), profile.budget.rank)
        return now

    rule = segment_rule(normalize)
    trunk = layered(
        "hetlora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=rule, ranks=ranks
    )
    fit = trunk.exchanges[0]

    def init(rng: Rng) -> Tree:
        return {**trunk.init(rng), "ranks": {}}

    def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        pairs, left = factors(trained), _left(gamma, _rank(trained))
        return tail_penalty * torch.stack([tail(Product(*pair), left) for pair in pairs.values()]).sum()

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        if tail_penalty:
            client = client.penalised(penalty)
        reply, memory = fit.work(client, order, memory)
        if any(tensor.is_meta for tensor in reply.params.values()):  # planning: shapes without numbers
            return reply, memory
        rank = _rank(reply.params)
        left = _left(gamma, rank)
        before, after = _tail(order.params, reply.params, left), _tail(reply.params, reply.params, left)
        rank = pruned_rank(rank, before, after, gamma=gamma, min_rank=min_rank)
        # as long as it was sent, so that the server can check it; what was cut is zero
        params = {**reply.params, **_emptied(reply.params, rank)}
        return replace(reply, params=params, metrics={**reply.metrics, "rank": float(rank)}), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        ranks = dict(state["ranks"])

        def pruned() -> Iterator[Reply]:
            for reply in replies:
                sent = _rank(reply.params)
                rank = min(sent, max(1, int(reply.metrics.get("rank", sent))))
                if rank < sent:
                    ranks[str(reply.client)] = rank
                # it trained at the scale of the rank that it was sent
                yield replace(reply, params=dispatched(reply.params, rank, federation.scaling))

        return {**fit.merge(state, pruned()), "ranks": ranks}

    def metrics(order: Order) -> dict[str, Range]:
        sent = _rank(order.params)
        return {**METRICS, "rank": Range(min(sent, max(min_rank, _left(gamma, sent))), sent, whole=True)}

    return trunk._replace(init=init, exchanges=(fit._replace(work=work, merge=merge, metrics=metrics),))


def _left(gamma: float, rank: int) -> int:
    """The rank that a client keeps when it prunes."""
    return math.floor(gamma * rank + 1e-9)


def _rank(params: Mapping[str, Tensor]) -> int:
    """The rank of the adapters, which is the largest where modules' own differ."""
    return max((pair.A.shape[0] for pair in factors(params).values()), default=1)


def _tail(params: Params, trained: Mapping[str, Any], rank: int) -> float:
    """What is beyond the rank, summed over the trained modules."""
    pairs = factors(params)
    return math.fsum(float(tail(Product(*pairs[module]), rank)) for module in factors(trained))


def _emptied(params: Params, rank: int) -> Params:
    """The factors with zeros beyond the rank, in the shapes that they have."""
    pairs = {m: (b.clone(), a.clone()) for m, (b, a) in factors(params).items() if a.shape[0] > rank}
    for b, a in pairs.values():
        b[:, rank:], a[rank:] = 0.0, 0.0
    return named(pairs)
