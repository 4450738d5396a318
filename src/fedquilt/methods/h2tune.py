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
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from torch import Tensor

from fedquilt.adapters.lora.core import drift
from fedquilt.bank.alignment import Align, bank_merge
from fedquilt.bank.client_cores import RELATION, middle_of, model_with_cores
from fedquilt.bank.controls import with_noise
from fedquilt.bank.geometry import Geometry, rank_of
from fedquilt.bank.merge import COVERAGE, BankUpdate, at_most, drawn_bank, offered, slots_in, to_params
from fedquilt.bank.relation import depth_logits, relation
from fedquilt.bank.selection import selection_of
from fedquilt.client.fit import METRICS
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Factor, FromRound, Layers, Penalty, Rounds, With
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Extra, Phase, Worker
from fedquilt.methods.per_architecture import with_common_ends
from fedquilt.methods.traits import Traits


def h2tune(
    federation: Federation,
    *,
    selection: Literal["leading", "drawn", "strongest"] = "leading",
    max_bytes: Count | None = None,
    reselect: Annotated[Rounds, With("selection", ("strongest",))] = 1,
    alignment: Literal["learned", "top", "slots"] = "learned",
    width: Factor = 0.5,
    slots: Layers | None = None,
    joint_rounds: FromRound = 1,
    shared_steps: Count = 1,
    private_steps: Count = 4,
    shared_rate: Factor = 1.0,
    anchor: Penalty = 1.0,
    agreement: Penalty = 0.5,
    temperature: Factor = 1.0,
    deviation: Penalty = 0.0,
    server_rate: Factor = 1.0,
    damping: Penalty = 0.01,
    bank: Literal["shared", "noise"] = "shared",
    align: Align = "none",
    ends: Literal["private", "architecture"] = "private",
) -> Method:
    """Client k, of rank r_k, adapts its model by ``dW = s B (I + T) A``, where A, B and its head are local.

    A client that cannot afford to train all its layers trains the last ones.

    Parameters
    ----------
    federation : its clients may differ in model, task, head and rank.
    selection : the entries of a client: of the ``leading`` rows and columns, of rows and columns ``drawn`` once for it,
        or the ``strongest``, those of the largest magnitude.
    max_bytes : bound on a client's messages in each direction, in float32; its cores may then be smaller than r_k.
    reselect : number of rounds between selections of the strongest entries.
    alignment : the relation between layers and slots: ``learned``, starting by relative depth, or fixed: ``top``
        (counted from the last layer) or ``slots`` (by relative depth).
    width : standard deviation of the initial relation, in slots around a layer's relative depth.
    slots : number of slots; if left out, the number of layers of the deepest client.
    joint_rounds : number of initial rounds in which all tensors are trained at once; later, phases take turns.
    shared_steps, private_steps : optimiser steps of the two phases: on change and relation, and on A, B and head.
    shared_rate : learning rate of the shared phase, relative to that of the private one.
    anchor : strength of the penalty on the drift of the cores from those received.
    agreement, temperature : strength and temperature of the distillation from the model before the private phase.
    deviation : standard deviation of the initial bank; with 0 training starts as plain LoRA.
    server_rate : learning rate of the server's step towards the clients' proposals.
    damping : reduces the step of slots to which layers are only weakly related.
    bank : ``noise`` is the control without shared information, see ``bank.controls.with_noise``.
    align : the rule that aligns the architectures' updates of the bank before they are summed (CMGA).
    ends : ``architecture`` averages A, B and head over the clients of each architecture.

    Raises
    ------
    ConfigError
        if a client's adapters differ in rank, ``max_bytes`` is too small, or settings contradict the federation.
    ModelError
        if an adapted module belongs to none of the sites that are common to models.

    Paper: h2tune, method
    """
    profiles = {profile.id: profile for profile in federation.profiles}
    shape = Geometry(federation, slots, max_bytes)
    if alignment == "top":
        shape.refuse_deep("method.alignment = 'top'")
    if ends == "architecture":
        _check_ranks(federation, shape)
    choice = selection_of(selection, shape.size, reselect)
    merging = bank_merge(align, sorted(federation.layouts), step=server_rate, damping=damping)
    drawn = partial(drawn_bank, shape.every_site, shape.num_slots, shape.size)

    def init(rng: Rng) -> Tree:
        first = drawn(rng.child("bank"), deviation)
        return {"params": first, "round": 0, "selection": choice.init(rng, first), **merging.init(rng)}

    def entries(state: Tree, profile: Profile) -> dict[str, Tensor]:
        """(i) The entries of the bank that a client works with, by site."""
        return choice.entries(state["selection"], profile.id, shape.width(profile), shape.sites(profile))

    def order(state: Tree, profile: Profile) -> Order:
        depth, layers = shape.layout(profile).num_layers, shape.trained_layers(profile)
        by_depth = relation(depth_logits(depth, shape.num_slots, width)).sum(1)
        settings = {"layers": layers, "joint": state["round"] < joint_rounds, "relation": alignment, "width": width}
        sent = to_params(offered(state["params"], entries(state, profile)), by_depth)
        return Order(sent, {**settings, "architecture": profile.architecture})

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: order(state, profile) for profile in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        layers, layout = order.settings["layers"], shape.layout(client.profile)
        middle = middle_of(order, memory, layout, shape.rank(client.profile))  # (ii)
        shared, private = frozenset(middle.tensors), frozenset({*layout.names(layers), *layout.head})

        def near(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
            return anchor * drift(middle.cores(trained), middle.cores(start))

        held = (near,) if anchor else ()
        turns = [  # (iii)
            Phase(shared, shared_steps, shared_rate, held),
            Phase(private, private_steps, agreement=agreement, temperature=temperature),
        ]
        phases = [Phase(shared | private, penalties=held)] if order.settings["joint"] else turns
        fitted = client.alternate(order, memory, phases, extra=Extra(middle.tensors, middle.cores))
        now = {**middle.tensors, **fitted.params}
        own = {**memory.get("params", {}), **select(now, {*private, RELATION})}
        back = to_params(*middle.returned(now, layers))
        return Reply(client.id, back, fitted.num_examples, fitted.metrics), {**memory, "params": own}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        def updates() -> Iterator[tuple[str, BankUpdate]]:
            for reply in replies:
                profile = profiles[reply.client]
                yield profile.architecture, _update(reply, entries(state, profile), len(shape.trained_layers(profile)))

        merged, number = merging.merge(state, updates()), state["round"] + 1
        kept = choice.after(state["selection"], merged["params"], number)
        return {**state, **merged, "round": number, "selection": kept}

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        layout, rank = shape.layout(profile), shape.rank(profile)
        return model_with_cores(profile, initial, order, memory, layout=layout, rank=rank)

    def expects(order: Order) -> Params:
        return without(order.params, federation.layouts[order.settings["architecture"]].depth)

    def ranges(order: Order) -> dict[str, Range]:
        # the shares of every layer sum to 1; rounding on the wire adds less than one layer
        return {COVERAGE: Range(-1.0, len(order.settings["layers"]) + 1.0)}

    fit = Exchange("fit", ask, work, merge, expects, metrics=lambda order: METRICS, ranges=ranges)
    method = Method("h2tune", init, (fit,), order, model=model, report=merging.report)
    if bank == "noise":
        method = with_noise(method, federation.profiles, partial(drawn, deviation=1.0))
    return with_common_ends(method, federation) if ends == "architecture" else method


def traits(settings: Mapping[str, Any]) -> Traits:
    """The bank travels, across architectures; clients train their own factors, and cores computed from the bank."""
    return Traits(needs="factors", trains="own", merge="own", across=True, alignment=settings["align"])


def _update(reply: Reply, entries: Mapping[str, Tensor], num_layers: int) -> BankUpdate:
    """What a client that trained so many layers wants of its entries of the bank.

    Raises
    ------
    RoundError
        if the reply lacks the coverage of the slots.
    """
    if COVERAGE not in reply.params:
        raise RoundError(f"client {reply.client} sent no tensor '{COVERAGE}'")
    coverage = at_most(reply.params[COVERAGE], num_layers)
    return BankUpdate(reply.client, slots_in(reply.params), entries, coverage, reply.weight)


def _check_ranks(federation: Federation, shape: Geometry) -> None:
    """Raise ConfigError if a client's rank differs from that of its architecture, as a mean needs equal ranks."""
    for profile in federation.profiles:
        own, rank = rank_of(shape.layout(profile), None), shape.rank(profile)
        if rank != own:
            raise ConfigError(
                f"method.ends = 'architecture': client {profile.id} has rank {rank} and its architecture {own}, but a "
                "mean needs equal ranks; set adapter.rank instead of rank in the groups, or method.ends = 'private'"
            )
