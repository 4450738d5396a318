"""H2Tune: clients of unlike models and unlike tasks share small square matrices between their private factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from fedquilt.adapters.lora.core import drift
from fedquilt.adapters.sites import places_in, sites_of
from fedquilt.aggregate.alignment.gradients import AlignSettings
from fedquilt.aggregate.alignment.wrapper import draws_of, first_record, next_record, reported
from fedquilt.aggregate.mean import RunningMean
from fedquilt.bank.alignment import aligned_bank
from fedquilt.bank.client_cores import RELATION, middle_of, model_with_cores
from fedquilt.bank.merge import (
    COVERAGE,
    BankUpdate,
    as_large,
    at_most,
    drawn_bank,
    exchange_bytes,
    merged_bank,
    offered,
    slots_in,
    to_params,
)
from fedquilt.bank.relation import depth_logits, relation
from fedquilt.bank.selection import drawn, leading, rank_within, strongest
from fedquilt.client.fit import METRICS
from fedquilt.config.value_types import Count, Factor, FromRound, Layers, Penalty, Rounds, With
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.factors import at_rank
from fedquilt.core.method import Exchange, Method, reports_nothing
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Federation, Layout, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Extra, Phase, Worker
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
    align: Literal["none", "projection", "reference", "soft"] = "none",
    ends: Literal["private", "architecture"] = "private",
) -> Method:
    """Client k, of rank r_k, adapts its model by ``dW = s B (I + T) A``; A, B and its head never leave it.

    The cores T of its layers are made of what it was sent of the server's bank, by its relation between layers and
    slots of depth, and of a change that it learns. The first ``joint_rounds`` rounds train all at once; in the others
    ``shared_steps`` steps on change and relation and ``private_steps`` on A, B and head take turns: the first hold the
    cores near what the server sent (``anchor``), the second hold the answers near those before them (``agreement``, at
    ``temperature``). The learning rate of the first is ``shared_rate`` times that of the second.

    The bank has as many slots as the deepest client layers (or ``slots``) and is as wide as the largest rank. A client
    works with r_k^2 entries of each matrix, with fewer if more would take above ``max_bytes`` on their way (in float32,
    each direction): those of the first rows and columns, of rows and columns drawn once for it, or those that have
    grown most, chosen anew every ``reselect`` rounds. Its relation begins by relative depth, ``width`` slots wide, and
    is learned, or fixed by ``"top"`` or ``"slots"``. A client that cannot train all its layers trains its last ones.

    The bank begins with normal numbers of this ``deviation``, and moves ``server_rate`` times to where the clients
    would have it; ``damping`` holds slots back that hardly a layer belongs to. With ``bank = "noise"`` clients are sent
    drawn numbers as large as the bank in its place: the control for what is learned from others. With another
    ``align`` than ``"none"`` what architectures want of the bank is aligned by this rule before it is added up
    (CMGA). With ``ends = "architecture"`` A, B and the head are not private: clients of one architecture, and one rank,
    average them, too.

    Raises
    ------
    ConfigError
        if a number is out of its range, a client's adapters differ in rank, or ``max_bytes`` is too small.
    ModelError
        if an adapted module has no place among the sites that models have in common.

    Paper: h2tune, method
    """
    counts = {
        "reselect": reselect,
        "slots": 1 if slots is None else slots,
        "shared_steps": shared_steps,
        "private_steps": private_steps,
    }
    rates = {"width": width, "shared_rate": shared_rate, "temperature": temperature, "server_rate": server_rate}
    strengths = {"anchor": anchor, "agreement": agreement, "deviation": deviation, "damping": damping}
    strengths |= {"joint_rounds": joint_rounds}
    problems = [f"method.{key} = {value}: must be at least 1" for key, value in counts.items() if value < 1]
    problems += [f"method.{key} = {value}: must be above 0" for key, value in rates.items() if value <= 0]
    problems += [f"method.{key} = {value}: must be at least 0" for key, value in strengths.items() if value < 0]
    if problems:
        raise ConfigError(problems)
    layouts, profiles = federation.layouts, {profile.id: profile for profile in federation.profiles}
    sites = {name: sites_of(places_in(layout)) for name, layout in layouts.items()}
    every_site = tuple(dict.fromkeys(site for own in sites.values() for site in own))
    architectures = sorted(layouts)
    num_slots = slots or max(layout.num_layers for layout in layouts.values())

    deepest = max(layouts.values(), key=lambda layout: layout.num_layers)
    if alignment == "top" and deepest.num_layers > num_slots:
        raise ConfigError(
            f"method.alignment = 'top': {deepest.architecture} has {deepest.num_layers} layers and the bank "
            f"{num_slots} slots; leave method.slots out, or take 'slots' or 'learned'"
        )

    def core_width(profile: Profile) -> int:
        """How many rows and columns of the bank a client has."""
        rank = _rank(layouts[profile.architecture], profile.budget.rank)
        if max_bytes is None:
            return rank
        num_matrices = num_slots * len(sites[profile.architecture])
        return rank_within(max_bytes, num_matrices, rank, extra_bytes=exchange_bytes(num_slots, 0, 0))

    if ends == "architecture":
        _check_ranks(federation)

    def own_name(architecture: str, name: str) -> str:
        """Under which name the server keeps an architecture's A, B or head."""
        return f"{architecture}/{name}"

    size = max(core_width(profile) for profile in federation.profiles)

    def init(rng: Rng) -> Tree:
        state: Tree = {"params": drawn_bank(every_site, num_slots, size, rng.child("bank"), deviation), "round": 0}
        if ends == "architecture":
            made = {own: start(rng) for own, start in federation.initial.items()}
            state["ends"] = {own_name(own, n): tensor for own, params in made.items() for n, tensor in params.items()}
        if bank == "noise":
            state["noise"] = drawn_bank(every_site, num_slots, size, rng.child("noise"), 1.0)
        if selection == "drawn":
            state["draws"] = rng.child("draws").integer()
        if align != "none":
            state |= first_record(architectures, rng.child("align"))
        if selection == "strongest":
            state["scores"] = _scores(state["params"])
        return state

    def entries(state: Tree, profile: Profile) -> dict[str, Tensor]:
        """(i) Which entries of the bank a client works with, by its sites."""
        own = core_width(profile)
        if selection == "strongest":
            return {site: strongest(state["scores"][site], own * own) for site in sites[profile.architecture]}
        lines = (
            leading(own, size) if selection == "leading" else drawn(own, size, Rng(state["draws"]).child(profile.id))
        )
        return dict.fromkeys(sites[profile.architecture], lines.entries(size))

    def sent(state: Tree, profile: Profile) -> Params:
        """What of the bank a client gets, and how its layers would cover the slots by their depth; and its ends."""
        held = state["params"] if bank == "shared" else as_large(state["noise"], state["params"])
        depth = layouts[profile.architecture].num_layers
        by_depth = relation(depth_logits(depth, num_slots, width)).sum(1)
        params = to_params(offered(held, entries(state, profile)), by_depth)
        if ends == "architecture":
            own = profile.architecture
            params |= {name: state["ends"][own_name(own, name)] for name in layouts[own].depth}
        return params

    def order(state: Tree, profile: Profile) -> Order:
        depth = layouts[profile.architecture].num_layers
        layers = list(range(depth - min(depth, profile.budget.layers), depth))
        joint = state["round"] < joint_rounds
        settings = {"layers": layers, "joint": joint, "relation": alignment, "width": width}
        return Order(sent(state, profile), {**settings, "architecture": profile.architecture})

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: order(state, profile) for profile in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        layers, layout = order.settings["layers"], layouts[client.profile.architecture]
        # (ii) the cores, from the slots by the relation
        middle = middle_of(order, memory, layout, _rank(layout, client.profile.budget.rank))
        shared, private = frozenset(middle.tensors), frozenset({*layout.names(layers), *layout.head})

        def near(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
            return anchor * drift(middle.cores(trained), middle.cores(start))

        held = (near,) if anchor else ()
        if order.settings["joint"]:
            phases = [Phase(shared | private, penalties=held)]
        else:  # (iii) what is common and what is the client's own, in turns
            phases = [
                Phase(shared, shared_steps, shared_rate, held),
                Phase(private, private_steps, agreement=agreement, temperature=temperature),
            ]
        fitted = client.alternate(order, memory, phases, extra=Extra(middle.tensors, middle.cores))
        now, own = {**middle.tensors, **select(fitted.params, shared)}, select(fitted.params, private)
        back, kept = to_params(*middle.returned(now, layers)), select(now, [RELATION])
        if ends == "private":
            kept |= own
        else:
            back |= own
        reply = Reply(client.id, back, fitted.num_examples, fitted.metrics)
        return reply, {**memory, "params": {**memory.get("params", {}), **kept}}

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        layout = layouts[profile.architecture]
        rank = _rank(layout, profile.budget.rank)
        return model_with_cores(profile, initial, order, memory, layout=layout, rank=rank)

    def covered(reply: Reply) -> Tensor:
        """The coverage that a client tells, of no more layers than it has."""
        profile = profiles[reply.client]
        return at_most(reply.params[COVERAGE], min(layouts[profile.architecture].num_layers, profile.budget.layers))

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        mean = RunningMean(state.get("ends", {}))

        def updates() -> Iterator[tuple[str, BankUpdate]]:
            for reply in replies:
                if COVERAGE not in reply.params:
                    raise RoundError(f"client {reply.client} sent no tensor '{COVERAGE}'")
                profile, own = profiles[reply.client], slots_in(reply.params)
                names = [name for name in reply.params if name in layouts[profile.architecture].depth]
                placed = {own_name(profile.architecture, name): reply.params[name] for name in names}
                mean.add(replace(reply, params=placed))
                held = entries(state, profile)
                if bank == "noise":  # what the client learned on top of noise, on top of the bank
                    base, given = offered(state["params"], held), slots_in(sent(state, profile))
                    own = {site: base[site] + (tensor - given[site]) for site, tensor in own.items()}
                yield profile.architecture, BankUpdate(reply.client, own, held, covered(reply), reply.weight)

        number, after = state["round"] + 1, {**state}
        if align == "none":
            unnamed = (update for _, update in updates())
            merged = merged_bank(state["params"], unnamed, step=server_rate, damping=damping)
        else:
            rule, rng = AlignSettings(align), draws_of(state)
            merged, made = aligned_bank(state["params"], updates(), rule, rng, step=server_rate, damping=damping)
            after |= next_record(state, made, architectures)
        after |= {"params": merged, "round": number}
        if ends == "architecture":
            after["ends"] = mean.result()
        if selection == "strongest" and number % reselect == 0:
            after["scores"] = _scores(merged)
        return after

    def expects(order: Order) -> Params:
        layout, layers = layouts[order.settings["architecture"]], order.settings["layers"]
        return without(order.params, {*layout.depth} - {*layout.names(layers), *layout.head})

    def ranges(order: Order) -> dict[str, Range]:
        # every layer belongs to the slots with 1 in all; what rounding on the wire adds is less than a layer
        return {COVERAGE: Range(-1.0, len(order.settings["layers"]) + 1.0)}

    fit = Exchange("fit", ask, work, merge, expects, metrics=lambda order: METRICS, ranges=ranges)
    report = reports_nothing if align == "none" else reported
    return Method("h2tune", init, (fit,), order, model=model, report=report)


def traits(settings: Mapping[str, Any]) -> Traits:
    """What travels is the bank, across architectures; clients train the factors and cores that they make of it."""
    return Traits(needs="factors", trains="own", merge="own", across=True, alignment=settings["align"])


def _check_ranks(federation: Federation) -> None:
    """Nothing, if every client has the rank of its architecture, as a mean needs it."""
    for profile in federation.profiles:
        own, rank = _rank(federation.layouts[profile.architecture], None), profile.budget.rank
        if rank is not None and rank != own:
            raise ConfigError(
                f"method.ends = 'architecture': client {profile.id} has rank {rank} and its architecture {own}, and a "
                "mean needs one; set adapter.rank in the groups in place of their rank, or ends = 'private'"
            )


def _scores(bank: Mapping[str, Tensor]) -> Params:
    """How large each entry of the bank is, over its slots: (R, R) by site."""
    return {site: matrices.square().sum(0).sqrt() for site, matrices in bank.items()}


def _rank(layout: Layout, rank: int | None) -> int:
    """The one rank of the adapters of a client of this rank; None is the layout's."""
    shapes = at_rank(layout, rank).shapes
    ranks = sorted({shape[0] for name, shape in shapes.items() if name.endswith(".lora_A")})
    if len(ranks) > 1:
        raise ConfigError(
            f"adapter.rank_pattern: {layout.architecture} has adapters of the ranks {', '.join(map(str, ranks))}, and "
            "'h2tune' needs one for all modules of a client, as wide as its cores; leave rank_pattern out"
        )
    return ranks[0]
