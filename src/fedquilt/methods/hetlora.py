"""HETLoRA: clients of different ranks, which prune their ranks; weights are the norms of the clients' products."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.rules import dispatched, segment_rule
from fedquilt.aggregate.lowrank.segment import pruned_rank, tail
from fedquilt.aggregate.settings import Normalize, RuleSettings
from fedquilt.allocate.layers import Shape
from fedquilt.client.fit import METRICS
from fedquilt.core.factors import factors, named
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Kept, Penalty, Rank, Unless
from fedquilt.core.types import Memory, ModelState, Order, Params, Profile, Range, Reply
from fedquilt.core.worker import Worker
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=segment_rule())

_PRUNED = Unless("gamma", 1.0)


class HetloraState(ModelState):
    """The server's state; ``ranks`` are those of the clients that pruned theirs, by number."""

    ranks: dict[str, int]


def hetlora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    normalize: Normalize = RuleSettings.normalize,
    gamma: Kept = 0.99,
    min_rank: Annotated[Rank, _PRUNED] = 1,
    tail_penalty: Annotated[Penalty, _PRUNED] = 0.0,
    weighting: Weighting = "examples",
) -> Method:
    """The mean of factors padded with zeros to the server's rank, client k weighted by ``||s_k B_k A_k||``.

    Client k is sent the first ``r_k`` columns of B and rows of A. If its tail, the part beyond rank ``floor(gamma
    r_k)``, shrank in training, it continues with that rank. Clients train as many layers as the lowest budget.

    Parameters
    ----------
    federation : its clients may differ in rank.
    shape : the geometric shape of the layers that all clients train.
    normalize : whether the mean of a rank that some clients lack is over ``all`` clients or those that hold it
        (``segment``).
    gamma : the share of its rank that a pruned client keeps; with 1 no client is pruned.
    min_rank : the lowest rank that pruning leads to.
    tail_penalty : the paper's lambda: the strength of the penalty on the tail in a client's loss.
    weighting : clients' weights in the mean of the head, by ``examples`` or ``uniform``.

    Paper: hetlora, method
    """

    def ranks(state: HetloraState, profile: Profile) -> int | None:
        return state["ranks"].get(str(profile.id), profile.budget.rank)

    rule = segment_rule(normalize)
    trunk = layered(
        "hetlora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=rule, ranks=ranks
    )
    fit = trunk.exchanges[0]

    def init(rng: Rng) -> HetloraState:
        state: ModelState = trunk.init(rng)
        return {**state, "ranks": {}}

    def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        pairs, left = factors(trained), _left(gamma, _rank(trained))
        return tail_penalty * torch.stack([tail(pair, left) for pair in pairs.values()]).sum()

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
        # in the shape that was sent, so that the server can check it; the pruned part is zero
        params = {**reply.params, **_emptied(reply.params, rank)}
        return replace(reply, params=params, metrics={**reply.metrics, "rank": float(rank)}), memory

    def merge(state: HetloraState, replies: Iterable[Reply]) -> HetloraState:
        ranks = dict(state["ranks"])

        def pruned() -> Iterator[Reply]:
            for reply in replies:
                sent = _rank(reply.params)
                rank = min(sent, max(1, int(reply.metrics.get("rank", sent))))
                if rank < sent:
                    ranks[str(reply.client)] = rank
                # the client trained at the scale of the rank that it was sent
                yield replace(reply, params=dispatched(reply.params, rank, federation.scaling))

        merged: ModelState = fit.merge(state, pruned())
        return {**merged, "ranks": ranks}

    def metrics(order: Order) -> dict[str, Range]:
        sent = _rank(order.params)
        return {**METRICS, "rank": Range(min(sent, max(min_rank, _left(gamma, sent))), sent, whole=True)}

    return trunk._replace(init=init, exchanges=(fit._replace(work=work, merge=merge, metrics=metrics),))


def _left(gamma: float, rank: int) -> int:
    """The rank that remains when a client prunes."""
    return math.floor(gamma * rank + 1e-9)


def _rank(params: Mapping[str, Tensor]) -> int:
    """The rank of the adapters, which is the largest if those of modules differ."""
    return max((pair.A.shape[0] for pair in factors(params).values()), default=1)


def _tail(params: Params, trained: Mapping[str, Any], rank: int) -> float:
    """The tail beyond the rank, summed over the trained modules."""
    pairs = factors(params)
    return math.fsum(float(tail(pairs[module], rank)) for module in factors(trained))


def _emptied(params: Params, rank: int) -> Params:
    """The factors with zeros beyond the rank, in unchanged shapes."""
    pairs = {m: (b.clone(), a.clone()) for m, (b, a) in factors(params).items() if a.shape[0] > rank}
    for b, a in pairs.values():
        b[:, rank:], a[rank:] = 0.0, 0.0
    return named(pairs)
