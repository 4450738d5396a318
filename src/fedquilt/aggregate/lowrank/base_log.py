"""A log of the changes that were merged into the base, from which absent clients catch up exactly.

Methods that change the base (FLoRA merges the stack, FedEx-LoRA its residual) need every client to merge every change.
The log is a tree in the server's state: the version of the base, and for each version its change by module, a low-rank
product, or the dense matrix where that has fewer numbers. A client is sent the changes since its own version and merges
them one after another, in the same order as all other clients. It thus ends with a bit-identical base: sums of rounded
numbers depend on their order. Clients of one process that reach a version share its sum in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypedDict
from weakref import ref

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import dense
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import SHIFT, Product
from fedquilt.core.method import overlay
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile

Step = Product | Tensor
"""The change of one module's weight: a low-rank product, or the dense matrix, (d_out, d_in), where that is shorter."""

Change = Mapping[str, Step]
"""The change of the base in one round, by module."""


class Log(TypedDict):
    """The changes of the base from version ``oldest`` to ``version``: by module its factors B and A, or D if dense."""

    version: int
    oldest: int
    changes: list[dict[str, Params]]


class ClientBase(TypedDict):
    """A client's base: its version, and the sum of all changes up to it, dense (d_out, d_in) by module."""

    version: int
    shift: Params


class ServerBase(TypedDict):
    """The server's record of the base: the log, the sum of all changes, and the version that each client confirmed."""

    log: Log
    shift: Params
    confirmed: dict[str, int]


def empty_log() -> Log:
    """The log of an unchanged base: version 0."""
    return {"version": 0, "oldest": 0, "changes": []}


def shortest(change: Mapping[str, Product]) -> dict[str, Step]:
    """The change with the dense matrix in place of each product that has more numbers; merged, it has the same bits."""
    return {module: dense(made) if _is_long(made) else made for module, made in change.items()}


def logged(log: Log, change: Change) -> Log:
    """The log with one more change, which makes the next version."""
    entry = {module: dict(_parts(made)) for module, made in change.items()}
    return {**log, "version": log["version"] + 1, "changes": [*log["changes"], entry]}


def missed(log: Log, version: int) -> list[dict[str, Step]]:
    """The changes between this version and the newest, in the order in which they must be merged.

    Raises
    ------
    RoundError
        if the log does not reach back to this version, or has not reached it yet.
    """
    if not log["oldest"] <= version <= log["version"]:
        raise RoundError(
            f"a client's base is version {version}, but the log holds the changes from {log['oldest']} to "
            f"{log['version']}; send this client the whole base"
        )
    entries = log["changes"][version - log["oldest"] :]
    return [{module: _step(tensors) for module, tensors in entry.items()} for entry in entries]


def forgotten(log: Log, version: int) -> Log:
    """The log without the changes up to this version, for use when no client has an older base."""
    cut = min(max(version, log["oldest"]), log["version"])
    return {**log, "oldest": cut, "changes": log["changes"][cut - log["oldest"] :]}


def caught_up(weights: Mapping[str, Tensor], changes: Sequence[Change], transposed: Collection[str] = ()) -> Params:
    """The base weights, by module, after the changes; weights without a change are the same objects.

    Each change is rounded to the weight's dtype when it is merged, so that a base in half precision loses small
    changes: keep it in float32. ``transposed`` are the modules whose weight is (d_in, d_out), as in Conv1D.

    Paper: flora, merge
    """
    merged = dict(weights)
    for change in changes:
        for module, made in change.items():
            matrix = made if isinstance(made, Tensor) else dense(made)
            turned = matrix.T if module in transposed else matrix
            merged[module] = merged[module] + turned.to(merged[module].dtype)
    return merged


# The base of a federation ------------------------------------------------------------

_CHANGE = ".change."
"""Part of the name of a change's tensor: ``<module>.change.<version it makes>.B`` and ``.A``, or ``.D`` if dense."""


def first_base() -> ServerBase:
    """The server's record of an unchanged base."""
    return {"log": empty_log(), "shift": {}, "confirmed": {}}


def outgoing(base: ServerBase, client: ClientId) -> Params:
    """The changes that the client is not known to have, as tensors of an order."""
    known = base["confirmed"].get(str(client), 0)
    return {
        f"{module}{_CHANGE}{version}.{part}": tensor
        for version, change in enumerate(missed(base["log"], known), start=known + 1)
        for module, made in change.items()
        for part, tensor in _parts(made)
    }


def incoming(params: Mapping[str, Tensor], own: ClientBase | None = None) -> tuple[Params, ClientBase]:
    """Split received tensors into all but the changes, and the client's base with the missing changes merged.

    ``own`` is the client's base before, None for an unchanged one. The shift is float32 and summed in the order of the
    versions. It is bit-identical whether the changes are received one by one or all at once.
    """
    base: ClientBase = {"version": 0, "shift": {}} if own is None else own
    rest: Params = {}
    changes: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in params.items():
        module, is_change, tail = name.rpartition(_CHANGE)
        if not is_change:
            rest[name] = tensor
            continue
        number, _, part = tail.partition(".")
        changes.setdefault(int(number), {}).setdefault(module, {})[part] = tensor
    newest = max(changes, default=0)
    if newest <= base["version"] or not changes.keys() >= {*range(base["version"] + 1, newest + 1)}:
        return rest, base  # it has them all, or one in between was not sent
    shared = _SHARED.get(newest, changes[newest])
    if shared is None:
        shared = base["shift"]
        for version in range(base["version"] + 1, newest + 1):
            change = {module: _step(parts) for module, parts in changes[version].items()}
            shared = _shifted(shared, change)
        _SHARED.put(newest, changes[newest], shared)
    return rest, {"version": newest, "shift": shared}


class _Shared:
    """The sum of the changes up to a version, for whoever is sent the very tensors of that version's last change.

    Two clients that are sent the same tensors belong to the same log, so that their bases have the same bits. Only weak
    references are held: what no client's memory holds any longer is gone.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[int, ...], tuple[list[ref[Tensor]], dict[str, ref[Tensor]]]] = {}

    def get(self, version: int, last: Mapping[str, Mapping[str, Tensor]]) -> Params | None:
        sent = [tensor for parts in last.values() for tensor in parts.values()]
        held = self._sums.get((version, *map(id, sent)))
        if held is None or any(one() is not tensor for one, tensor in zip(held[0], sent, strict=True)):
            return None
        found = {module: tensor() for module, tensor in held[1].items()}
        alive = {module: tensor for module, tensor in found.items() if tensor is not None}
        return alive if len(alive) == len(found) else None

    def put(self, version: int, last: Mapping[str, Mapping[str, Tensor]], shift: Mapping[str, Tensor]) -> None:
        sent = [tensor for parts in last.values() for tensor in parts.values()]
        self._sums = {key: one for key, one in self._sums.items() if all(tensor() is not None for tensor in one[0])}
        self._sums[(version, *map(id, sent))] = [*map(ref, sent)], {m: ref(tensor) for m, tensor in shift.items()}


_SHARED = _Shared()


def advanced(
    base: ServerBase, change: Mapping[str, Product], answered: Iterable[ClientId], everyone: Iterable[ClientId]
) -> ServerBase:
    """The server's base after a round: clients that answered have the current version, and ``change`` makes the next.

    Changes that all of ``everyone`` have are removed from the log; their sum is kept. An empty change makes no version.
    """
    confirmed = {**base["confirmed"], **{str(client): base["log"]["version"] for client in answered}}
    log = forgotten(base["log"], min(confirmed.get(str(client), 0) for client in everyone))
    if not change:
        return {**base, "log": log, "confirmed": confirmed}
    made = shortest(change)
    log, shift = logged(log, made), _shifted(base["shift"], made)
    _SHARED.put(log["version"], log["changes"][-1], shift)
    return {"log": log, "shift": shift, "confirmed": confirmed}


def shifts(base: ServerBase | ClientBase) -> Params:
    """The sum of all changes of a server's or a client's base, named as a model loads it: ``<module>.shift``."""
    return {f"{module}.{SHIFT}": tensor for module, tensor in base["shift"].items()}


def model_on_base(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
    """``Method.model`` of methods that change the base.

    The client's base (``memory["base"]``), with the order's changes merged, is added to the tensors of the adapters as
    ``<module>.shift``.
    """
    sent, base = incoming(order.params, memory.get("base"))
    return overlay(profile, {**initial, **shifts(base)}, replace(order, params=sent), memory)


def _shifted(shift: Mapping[str, Tensor], change: Change) -> Params:
    zero = {
        module: torch.zeros(_shape(made), device=_parts(made)[0][1].device)
        for module, made in change.items()
        if module not in shift
    }
    return caught_up({**shift, **zero}, [change])


def _shape(made: Step) -> tuple[int, int]:
    return (made.shape[0], made.shape[1]) if isinstance(made, Tensor) else (len(made.B), made.A.shape[1])


def _is_long(product: Product) -> bool:
    d_out, d_in = _shape(product)
    return product.B.numel() + product.A.numel() > d_out * d_in


def _parts(made: Step) -> tuple[tuple[str, Tensor], ...]:
    return (("D", made),) if isinstance(made, Tensor) else (("B", made.B), ("A", made.A))


def _step(parts: Mapping[str, Tensor]) -> Step:
    """What ``_parts`` took apart."""
    return parts["D"] if "D" in parts else Product(parts["B"], parts["A"])
