"""Co-LoRA (FedMosaic): models of unlike width share a small matrix and vector between factors aligned beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor

from fedquilt.adapters.sites import is_shared
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Positive, Share, With
from fedquilt.core.types import ClientId, Order, Params, Profile, Reply, Tree, Turn
from fedquilt.methods.layered import Weighting
from fedquilt.methods.sharing import check_shared, sharing
from fedquilt.methods.traits import Traits

Aggregation = Literal["mean", "rela"]

_PERSONAL = With("aggregation", ("rela",))


def co_lora(
    federation: Federation,
    *,
    aggregation: Aggregation = "mean",
    temperature: Annotated[Positive, _PERSONAL] = 0.5,
    momentum: Annotated[Share, _PERSONAL] = 0.5,
    weighting: Weighting = "examples",
) -> Method:
    """Average P and Q over all clients, and all other tensors within each architecture.

    At a target of a shared block an adapter adds ``s B (P A x + Q)``; A and B are frozen, and were aligned to those of
    the smallest model on public inputs before the first round (``aggregate.anchor``). P (r, r) and Q (r,) start at 0.
    All other blocks have plain LoRA.

    With ``aggregation = "rela"`` each client receives P and Q of its own: those that the other clients returned last,
    weighted by how alike the clients' tasks are. The published system measures that by gradients of one small frozen
    model that all clients have. There is none here, so this is our inference: the client's mean update of P and Q
    stands for its gradient; it means the same in every architecture, and says nothing that the server does not have.

    Parameters
    ----------
    federation : its clients may differ in architecture.
    aggregation : ``mean`` over all clients; or ``rela``, for each client a mean of the others of its own.
    temperature : of the softmax over the cosines between updates; the lower, the more the most similar clients count.
    momentum : share of the earlier rounds in the moving average of a client's updates.
    weighting : clients' weights in the means, by ``examples`` or ``uniform``.

    Raises
    ------
    ConfigError
        if the adapters share nothing, or the shared tensors have different shapes.

    Paper: fedmosaic, shared-mean
    """
    check_shared(federation, "co-lora", "set adapter.kind = 'anchored'")
    method = sharing("co-lora", federation, True, None, weighting)
    return method if aggregation == "mean" else _with_relevance(method, temperature, momentum)


def traits(settings: Mapping[str, Any]) -> Traits:
    """Adapters that are aligned to the smallest model; with ``rela`` the server combines them in its own way."""
    return Traits(needs="anchored", across=True, merge="mean" if settings["aggregation"] == "mean" else "own")


class RelevanceState(TypedDict):
    """What personal aggregation adds to a state, by the client's number."""

    latest: dict[str, Params]
    """The shared tensors that the client returned last."""
    updates: dict[str, Params]
    """The moving average of its updates of them."""


def _with_relevance(method: Method, temperature: float, momentum: float) -> Method:
    """The method whose clients each receive a mean of the others' shared tensors of their own."""

    def init(rng: Rng) -> Tree:
        return {**method.init(rng), "relevance": RelevanceState(latest={}, updates={})}

    def personal(state: Tree, client: ClientId, params: Params) -> Params:
        """The tensors that a client receives, given those that a method without this would send."""
        latest, updates = state["relevance"]["latest"], state["relevance"]["updates"]
        weights = relevance(updates, str(client), temperature)
        shared = (name for name in params if is_shared(name))
        return params | {name: mean_of(name, latest, weights, params[name]) for name in shared}

    def view(state: Tree, profile: Profile) -> Order:
        order = method.view(state, profile)
        return replace(order, params=personal(state, profile.id, order.params))

    def averaging(exchange: Exchange) -> Exchange:
        def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
            orders = exchange.ask(state, turn)
            return {
                client: replace(order, params=personal(state, client, order.params)) for client, order in orders.items()
            }

        def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
            latest, updates = dict(state["relevance"]["latest"]), dict(state["relevance"]["updates"])

            def noted() -> Iterator[Reply]:
                for reply in replies:
                    own, name = str(reply.client), reply.client
                    now = {key: tensor for key, tensor in reply.params.items() if is_shared(key)}
                    sent = personal(state, name, {key: state["params"][key] for key in now})
                    before = updates.get(own, {})
                    moved = {key: tensor - sent[key] for key, tensor in now.items()}
                    averaged = {
                        key: change if key not in before else momentum * before[key] + (1 - momentum) * change
                        for key, change in moved.items()
                    }
                    latest[own], updates[own] = {**latest.get(own, {}), **now}, {**before, **averaged}
                    yield reply

            merged = exchange.merge(state, noted())
            return {**merged, "relevance": RelevanceState(latest=latest, updates=updates)}

        return exchange._replace(ask=ask, merge=merge)

    exchanges = tuple(averaging(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, view=view)


def relevance(updates: Mapping[str, Params], client: str, temperature: float) -> dict[str, float]:
    """The weight of every other client for this one: ``softmax(cos(u_i, u_j) / temperature)`` over the others j.

    A cosine is over the tensors that both clients updated, and 0 for a client without an update.

    Paper: fedmosaic, relevance
    """
    own, others = updates.get(client, {}), {name: found for name, found in updates.items() if name != client}
    if not others:
        return {}
    cosines = torch.stack([_cosine(own, found) for found in others.values()])
    return dict(zip(others, (cosines / temperature).softmax(0).tolist(), strict=True))


def mean_of(name: str, latest: Mapping[str, Params], weights: Mapping[str, float], otherwise: Tensor) -> Tensor:
    """The weighted mean of a tensor over those of the weighted clients that returned it; ``otherwise`` if none did."""
    held = {client: weight for client, weight in weights.items() if name in latest[client]}
    total = sum(held.values())
    if not total:
        return otherwise
    mean = sum((weight / total * latest[client][name].double() for client, weight in held.items()), torch.zeros(()))
    return mean.to(otherwise.dtype)


def _cosine(one: Params, other: Params) -> Tensor:
    """The cosine between two sets of tensors, over the names that they have in common; 0 if there are none."""
    common = [name for name in one if name in other]
    flat = [torch.cat([held[name].double().flatten() for name in common] or [torch.zeros(1)]) for held in (one, other)]
    return torch.nn.functional.cosine_similarity(flat[0].double(), flat[1].double(), dim=0, eps=1e-30)
