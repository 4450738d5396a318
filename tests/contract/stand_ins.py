"""A federation whose clients do not train: for tests of who is asked for what, over many rounds in no time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fedquilt.core.federation import Federation
from fedquilt.core.loop import Round, rounds
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, ClientId, Layout, Memory, Order, Params, Profile, Tree
from fedquilt.core.worker import Fitted
from fedquilt.engine.local import LocalEngine


@dataclass
class StandIn:
    """Returns each tensor it was to train moved by 1, and the scores it was told; keeps what it was asked."""

    profile: Profile
    layout: Layout
    scores: Callable[[int], Sequence[float]]
    fits: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    scorings: list[tuple[str, str]] = field(default_factory=list)
    frozen: frozenset[str] = frozenset()

    @property
    def id(self) -> ClientId:
        return self.profile.id

    def freezing(self, names: Collection[str]) -> StandIn:
        return replace(self, frozen=frozenset(names))

    def fit(self, order: Order, memory: Memory, layers: Collection[int], *, blocks: object = None) -> Fitted:
        self.fits.append((order.round, tuple(layers)))
        names = {*self.layout.names(layers), *self.layout.head} - self.frozen
        moved = {name: tensor + 1 for name, tensor in order.params.items() if name in names}
        return Fitted(moved, self.profile.num_examples, {"loss": 1.0})

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str, objective: str = "log-prob"
    ) -> list[float]:
        self.scorings.append((kind, objective))
        return list(self.scores(len(self.scorings) - 1))


class Cast(NamedTuple):
    federation: Federation
    clients: dict[ClientId, StandIn]


def cast(
    *,
    num_layers: int = 12,
    budgets: Sequence[int] = (6, 9, 12),
    sizes: Sequence[int] = (10, 20, 30),
    rounds: int = 20,
    server: Callable[[int], Sequence[float]] | None = None,
    scores: Callable[[int, int], Sequence[float]] = lambda client, call: [1.0] * 12,
) -> Cast:
    """``server(call)`` are the scores of the server's n-th scoring, ``scores(client, call)`` those of a client's."""
    names = {f"m.layers.{i}.q_proj.lora_{factor}": i for i in range(num_layers) for factor in "AB"}
    where = Layout("stand-in", num_layers, {**names, "head.weight": None}, dict.fromkeys([*names, "head.weight"], (2,)))

    def start(rng: Rng) -> Params:
        return {name: torch.zeros(2) for name in where.depth}

    def stand_in(id: ClientId, budget: int, size: int, told: Callable[[int], Sequence[float]]) -> StandIn:
        return StandIn(Profile(id, size, "stand-in", Budget(budget), "toy"), where, told)

    def told_by(id: ClientId) -> Callable[[int], Sequence[float]]:
        return lambda call: scores(id, call)

    clients = {id: stand_in(id, b, n, told_by(id)) for id, (b, n) in enumerate(zip(budgets, sizes, strict=True))}
    host = {} if server is None else {"stand-in": stand_in(-1, num_layers, 1, server)}
    profiles = tuple(client.profile for client in clients.values())
    return Cast(Federation(profiles, {"stand-in": where}, {"stand-in": start}, rounds, proxies=host), clients)


def run(
    method: Method,
    scene: Cast,
    *,
    num_rounds: int | None = None,
    seed: int = 3,
    cohort: Callable[[int], Sequence[Profile]] | None = None,
    state: Tree = None,
    start: int = 0,
) -> list[Round]:
    """All rounds of the method among the stand-ins, with everybody in every cohort unless told otherwise."""
    send = LocalEngine(scene.clients).send
    cohorts = cohort or (lambda number: scene.federation.profiles)
    number = scene.federation.rounds if num_rounds is None else num_rounds
    return list(rounds(method, cohorts, send, Rng(seed), num_rounds=number, state=state, start=start))


def layers_of(done: Round) -> dict[ClientId, tuple[int, ...]]:
    """Who was asked to train which layers in a round."""
    return {client: tuple(settings["layers"]) for client, settings in done.traffic[0].settings.items()}
