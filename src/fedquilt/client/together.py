"""Evaluation of many clients: those that use the same tensors are evaluated in one pass over all of their rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.client.score import evaluations
from fedquilt.core.types import ClientId, Memory, Order, Params

_PENDING = 16
"""How many models wait for further clients that use them; the one that has waited longest is then evaluated."""


class _Model(NamedTuple):
    """A model that is to be evaluated, and the clients that use it."""

    params: Params
    clients: list[Client]


def evaluated(
    asked: Iterable[tuple[Client, Order, Memory | None]], split: str = "test"
) -> dict[ClientId, dict[str, float]]:
    """The scores of each client on one of its held-out splits, as ``Client.evaluate`` gives them; empty ones left out.

    Parameters
    ----------
    asked
        Clients, with the order and the memory that stand for the model of each.
    split
        ``"test"`` or ``"validation"``.
    """
    pending: dict[Hashable, _Model] = {}
    order: list[ClientId] = []
    found: dict[ClientId, dict[str, float]] = {}
    for client, received, memory in asked:
        columns = client.splits.get(split)
        if columns is None or len(columns["labels"]) == 0:
            continue
        order.append(client.id)
        params = client.params(received, memory)
        shape = tuple((name, column.shape[1:], column.dtype) for name, column in sorted(columns.items()))
        same = (id(client.bench), client.batch_size, client.answering, shape, _same(params))
        # the parameters are kept with the key, so that no other tensor can take the place of one of them
        pending.setdefault(same, _Model(params, [])).clients.append(client)
        if len(pending) > _PENDING:
            found |= _scored(pending.pop(next(iter(pending))), split)
    for model in pending.values():
        found |= _scored(model, split)
    return {id: found[id] for id in order}


def _same(params: Params) -> Hashable:
    """Equal for parameters that are the same numbers in memory, whatever Python objects stand for them."""
    return tuple((name, *_place(tensor)) for name, tensor in sorted(params.items()))


def _place(tensor: Tensor) -> Sequence[Hashable]:
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _scored(model: _Model, split: str) -> dict[ClientId, dict[str, float]]:
    first = model.clients[0]
    scores = evaluations(
        first.bench,
        [client.splits[split] for client in model.clients],
        model.params,
        batch_size=first.batch_size,
        answering=first.answering,
    )
    return {client.id: own for client, own in zip(model.clients, scores, strict=True)}
