"""H2Tune: heterogeneous clients share the small square matrices between the local factors of their adapters.

server   G  one (R, R) matrix for each site (query, value, ...) and slot of depth, drawn once
         send client k its r_k^2 entries of every matrix of its sites                                      (i)
client   T_l = sum_j P[j, l] G_j + C_l,  C = 0      its layers' cores, by its own relation P               (ii)
         y = W0 x + s B (I + T_l) A x
         repeat                                                                                            (iii)
           shared_steps   on C and P:           CE + anchor * drift(T, T as received)
           private_steps  on A, B and head:     CE + agreement * t^2 KL(before this turn || now)
         send back  G_j + sum_l P[j, l] C_l / sum_l P[j, l]  and the coverage  v[j] = sum_l P[j, l]
server   G_j[e] += server_rate * sum_k n_k v_k[j] (D_k - G_j[e]) / max(sum_k n_k v_k[j], damping sum_k n_k)
         with D_k what client k sent for entry e of slot j

With adapters in common coordinates (``ends = "common"``) the algorithm is that of ``h2tune_common``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fedquilt.bank.alignment import BankAlign, bank_merge
from fedquilt.bank.client_cores import RELATION
from fedquilt.bank.controls import with_noise
from fedquilt.bank.geometry import Geometry
from fedquilt.bank.merge import to_params
from fedquilt.bank.selection import selection_of
from fedquilt.bank.server import BankServer, BankState
from fedquilt.client.fit import METRICS
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select
from fedquilt.core.settings import Count, Factor, FromRound, Layers, Penalty, Rounds, Unless, With
from fedquilt.core.types import ClientId, Memory, Order, Profile, Reply, Turn
from fedquilt.core.worker import Extra, Phase, Worker
from fedquilt.methods.h2tune_common import Turns, in_common_coordinates
from fedquilt.methods.per_architecture import with_common_ends
from fedquilt.methods.traits import Traits

_BANK = With("ends", ("private", "architecture"))


def h2tune(
    federation: Federation,
    *,
    ends: Literal["private", "architecture", "common"] = "private",
    selection: Annotated[Literal["leading", "drawn", "strongest"], _BANK] = "leading",
    max_bytes: Annotated[Count | None, _BANK] = None,
    reselect: Annotated[Rounds, With("selection", ("strongest",)), _BANK] = 1,
    alignment: Annotated[Literal["learned", "top", "slots"], _BANK] = "learned",
    width: Annotated[Factor, With("alignment", ("learned",)), _BANK] = 0.5,
    slots: Annotated[Layers | None, _BANK] = None,
    free_after: Annotated[FromRound | None, With("ends", ("common",))] = None,
    joint_rounds: FromRound = 1,
    shared_steps: Count = 1,
    private_steps: Count = 4,
    shared_rate: Factor = 1.0,
    anchor: Penalty = 1.0,
    agreement: Penalty = 0.5,
    temperature: Annotated[Factor, Unless("agreement", 0.0)] = 1.0,
    deviation: Annotated[Penalty, _BANK] = 0.0,
    server_rate: Factor = 1.0,
    damping: Annotated[Penalty, _BANK] = 0.01,
    bank: Annotated[Literal["shared", "noise"], _BANK] = "shared",
    align: Annotated[BankAlign, _BANK] = "none",
) -> Method:
    """Client k, of rank r_k, adapts its model by ``dW = s B (I + T) A``, where A, B and its head are local.

    A client that cannot afford to train all its layers trains the last ones.

    Parameters
    ----------
    federation : its clients may differ in model, task, head and rank.
    ends : ``architecture`` averages A, B and head over the clients of each architecture; ``common`` is for adapters in
        common coordinates, whose A and B are the axes of their models, and is chosen with ``adapter.kind = "common"``.
    selection : the entries of a client: of the ``leading`` rows and columns, of rows and columns ``drawn`` once for it,
        or the ``strongest``, those of the largest magnitude.
    max_bytes : bound on a client's messages in each direction, in float32; its cores may then be smaller than r_k.
    reselect : number of rounds between selections of the strongest entries.
    alignment : the relation between layers and slots: ``learned``, starting by relative depth, or fixed: ``top``
        (counted from the last layer) or ``slots`` (by relative depth).
    width : standard deviation of the initial relation, in slots around a layer's relative depth.
    slots : number of slots; if left out, the number of layers of the deepest client.
    free_after : number of initial rounds in which the ends in common coordinates are frozen; later each client trains
        its own. If left out, they are frozen in all rounds.
    joint_rounds : number of initial rounds in which all tensors are trained at once; later, phases take turns.
    shared_steps, private_steps : optimiser steps of the two phases: on change and relation, and on A, B and head; in
        common coordinates on what is shared, and on what is not.
    shared_rate : learning rate of the shared phase, relative to that of the private one.
    anchor : strength of the penalty on the drift of the cores from those received.
    agreement, temperature : strength and temperature of the distillation from the model before the private phase.
    deviation : standard deviation of the initial bank; with 0 training starts as plain LoRA.
    server_rate : learning rate of the server's step towards the clients' proposals.
    damping : reduces the step of slots to which layers are only weakly related.
    bank : ``noise`` is the control without shared information, see ``bank.controls.with_noise``.
    align : the rule that aligns the architectures' updates of the bank before they are summed (CMGA).

    Raises
    ------
    ConfigError
        if a client's adapters differ in rank, ``max_bytes`` is too small, or settings contradict the federation.
    ModelError
        if an adapted module belongs to none of the sites that are common to models.

    Paper: h2tune, method
    """
    shared = partial(Phase, steps=shared_steps, rate=shared_rate)
    private = partial(Phase, steps=private_steps, agreement=agreement, temperature=temperature)
    if ends == "common":
        turns = Turns(shared, private, anchor, joint_rounds, free_after)
        return in_common_coordinates(federation, turns, server_rate)
    shape = Geometry(federation, slots, max_bytes)
    if alignment == "top":
        shape.refuse_deep("method.alignment = 'top'")
    choice = selection_of(selection, shape.size, reselect)
    merging = bank_merge(align, sorted(federation.layouts), step=server_rate, damping=damping)
    server = BankServer(shape, choice, merging, alignment, width, deviation)
    method = _rounds(server, (shared, private), anchor, joint_rounds)
    if bank == "noise":
        method = with_noise(method, federation.profiles, server.drawn)
    return with_common_ends(method, federation) if ends == "architecture" else method


def _rounds(server: BankServer, turns: Sequence[Callable[..., Phase]], anchor: float, joint_rounds: int) -> Method:
    """The algorithm above; ``turns`` make its shared and its private phase from the names of what they train."""
    shared_turn, private_turn = turns

    def view(state: BankState, profile: Profile) -> Order:
        return server.order(state, profile, joint=state["round"] < joint_rounds)

    def ask(state: BankState, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: view(state, profile) for profile in turn.cohort}  # (i)

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        middle = server.middle(client.profile, order, memory)  # (ii)
        shared, private = frozenset(middle.tensors), server.private(order)
        near = (middle.anchor(anchor),) if anchor else ()
        alternating = [shared_turn(shared, penalties=near), private_turn(private)]  # (iii)
        phases = [Phase(shared | private, penalties=near)] if order.settings["joint"] else alternating
        fitted = client.alternate(order, memory, phases, extra=Extra(middle.tensors, middle.cores))
        now = {**middle.tensors, **fitted.params}
        own = {**memory.get("params", {}), **select(now, {*private, RELATION})}
        back = to_params(*middle.returned(now, order.settings["layers"]))
        return Reply(client.id, back, fitted.num_examples, fitted.metrics), {**memory, "params": own}

    fit = Exchange("fit", ask, work, server.merge, server.expects, metrics=lambda order: METRICS, ranges=server.ranges)
    return Method("h2tune", server.init, (fit,), view, model=server.model, report=server.merging.report)


def traits(settings: Mapping[str, Any]) -> Traits:
    """The bank travels, across architectures; clients train their own factors, and cores computed from the bank.

    In common coordinates the cores themselves travel, and are averaged.
    """
    if settings["ends"] == "common":
        return Traits(needs="coordinates", across=True)
    return Traits(needs="factors", trains="own", merge="own", across=True, alignment=settings["align"], slots=True)
