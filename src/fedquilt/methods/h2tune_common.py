"""H2Tune in common coordinates: clients share cores between ends that mean the same in every model.

server   S  one (r, r) matrix for each site and slot of depth, 0 at first, and one head V for each set of classes
         send client k the matrices of its sites and its classes                                           (i)
client   y = W0 x + s B S A x + t P Q x      A and B: the axes of its model; P, Q: its own LoRA            (ii)
         repeat                                                                                            (iii)
           shared_steps   on S and V, at shared_rate times the learning rate:   CE + anchor * drift(S, V)
           private_steps  on P and Q, and after free_after rounds on A and B:
                                                         CE + agreement * t^2 KL(before this turn || now)
         send back S and V, keep all else
server   S += server_rate * sum_k n_k (S_k - S) / sum_k n_k      over the clients k that trained S, and so for V

A tensor that the order lacks is the client's own: V is trained and kept like P and Q with ``head.policy = "local"``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.adapters.lora.core import drift
from fedquilt.adapters.mixture.inject import check_bank
from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.allocate.layers import gd_set
from fedquilt.client.fit import METRICS
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import moved, select, wide, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, ModelState, Order, Params, Profile, Reply, Turn
from fedquilt.core.worker import Penalty, Phase, Worker, at_once


@dataclass(frozen=True)
class Turns:
    """How the clients train: the two phases that take turns, and for how many rounds they are one.

    Attributes
    ----------
    shared, private
        They make a phase from the names of what it trains.
    anchor
        Strength of the penalty on the drift of what is shared.
    joint_rounds
        Number of initial rounds in which everything is trained at once.
    free_after
        Number of initial rounds in which the ends are the axes; None for all rounds.
    """

    shared: Callable[..., Phase]
    private: Callable[..., Phase]
    anchor: float
    joint_rounds: int
    free_after: int | None = None


def in_common_coordinates(federation: Federation, turns: Turns, server_rate: float) -> Method:
    """The algorithm above, for clients with adapters in common coordinates.

    Raises
    ------
    ConfigError
        if there are no such adapters.
    ModelError
        if the shared matrices have different shapes in different architectures.
    """
    layouts, aggregate = federation.layouts, federation.aggregate or layerwise_mean
    _refuse(federation)

    def init(rng: Rng) -> ModelState:
        made = [start(rng) for start in federation.initial.values()]
        return {"params": {name: tensor for params in made for name, tensor in params.items() if is_shared(name)}}

    def view(state: ModelState, profile: Profile) -> Order:
        own = profile.architecture
        layers = gd_set("inverted-triangle", layouts[own].num_layers, profile.budget.layers)
        return Order(select(state["params"], layouts[own].depth), {"layers": list(layers), "architecture": own})

    def ask(state: ModelState, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: view(state, profile) for profile in turn.cohort}  # (i)

    def trained(order: Order) -> frozenset[str]:
        layout = layouts[order.settings["architecture"]]
        return frozenset({*layout.names(order.settings["layers"]), *layout.head})

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        shared = trained(order) & order.params.keys()
        free = turns.free_after is not None and order.round >= turns.free_after
        ends = client.ends(order.settings["layers"]) if free else frozenset()
        private = (trained(order) - shared) | ends
        near = (_anchor(shared, turns.anchor),) if shared and turns.anchor else ()
        phases = [turns.shared(shared, penalties=near)] if shared else []
        phases += [turns.private(private)] if private else []
        together = order.round < turns.joint_rounds
        fitted = client.alternate(order, memory, [at_once(phases)] if together else phases)  # (ii), (iii)
        own = {**memory.get("params", {}), **without(fitted.params, shared)}
        back = select(fitted.params, shared)
        return Reply(client.id, back, fitted.num_examples, fitted.metrics), {**memory, "params": own}

    def expects(order: Order) -> Params:
        return select(order.params, trained(order))

    def merge(state: ModelState, replies: Iterable[Reply]) -> ModelState:
        before = state["params"]
        return {**state, "params": _step(before, aggregate(before, replies, "examples"), server_rate)}

    fit = Exchange("fit", ask, work, merge, expects, metrics=lambda order: METRICS)
    return Method("h2tune", init, (fit,), view)


def _anchor(names: Collection[str], strength: float) -> Penalty:
    """The penalty on the drift of these tensors from those received."""

    def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        own = select(dict(trained), names)  # none in a phase of private tensors alone
        return strength * drift(own, start) if own else torch.zeros(())

    return penalty


def _step(before: Params, mean: Params, rate: float) -> Params:
    """``before + rate (mean - before)``; a tensor that nobody sent remains the same object."""
    if rate == 1:
        return mean
    return {
        name: old if mean[name] is old else moved(old, rate * (wide(mean[name]) - wide(old)))
        for name, old in before.items()
    }


def _refuse(federation: Federation) -> None:
    """Raise ConfigError or ModelError if the federation has nothing to share."""
    layouts = federation.layouts
    if bare := [own for own, layout in layouts.items() if not any(map(is_shared, layout.depth))]:
        raise ConfigError(
            f"method.ends = 'common': the adapters of {bare[0]} are not in common coordinates; set adapter.kind = "
            "'common'"
        )
    check_bank(
        {
            own: {name: torch.empty(shape, device="meta") for name, shape in layout.shapes.items() if is_shared(name)}
            for own, layout in layouts.items()
        }
    )
