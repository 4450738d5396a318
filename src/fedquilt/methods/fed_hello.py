"""Fed-HeLLo: each client trains only as many LoRA layers as it can afford, chosen by shape or by importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fedquilt.allocate.importance import layer_weights, smoothed
from fedquilt.allocate.layers import Shape, counts, cover, draw, gd_set, madow, odds
from fedquilt.client.fit import METRICS
from fedquilt.core.bounds import limited
from fedquilt.core.defence import RATIO
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import FromRound, Rounds, Share, With
from fedquilt.core.types import ClientId, Memory, ModelState, Order, Range, Reply, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.layered import Weighting, layered
from fedquilt.methods.traits import Traits

TRIANGLE = With("shape", ("triangle", "inverted-triangle"))
DRAWN = With("allocation", ("rgd", "fim"))
SCORED = With("allocation", ("fim",))


class FedHelloState(ModelState, total=False):
    """The server's state; all entries besides ``params`` exist only with the allocation ``fim``.

    Attributes
    ----------
    round
        Number of finished rounds.
    scores
        The smoothed Fisher scores of the layers; None before the first refresh, as the two below.
    probabilities
        The odds that follow from them.
    refreshed
        The number of rounds after which they were computed.
    """

    round: int
    scores: list[float] | None
    probabilities: list[float] | None
    refreshed: int | None


def fed_hello(
    federation: Federation,
    *,
    allocation: Literal["gd", "rgd", "fim"] = "fim",
    shape: Shape = "bottleneck",
    base: Annotated[Literal["input", "output"], TRIANGLE] = "input",
    sampler: Annotated[Literal["gumbel", "madow"], DRAWN] = "gumbel",
    coverage: Annotated[bool, DRAWN] = True,
    warmup: Annotated[FromRound | None, SCORED] = None,
    refresh: Annotated[Rounds | None, SCORED] = None,
    scores_from: Annotated[Literal["server", "clients"], SCORED] = "server",
    score: Annotated[Literal["trace", "mean", "norm", "squared-norm"], SCORED] = "trace",
    smoothing: Annotated[Share, SCORED] = 0.8,
    log_scores: Annotated[bool, SCORED] = False,
    weighting: Weighting = "examples",
) -> Method:
    """Fed-HeLLo with a geometric (``gd``), randomised geometric (``rgd``) or Fisher-guided (``fim``) allocation.

    ``fim`` draws layers with the geometric odds for ``warmup`` rounds, and then with odds of 3, 2 and 1 for layers of
    high, middle and low Fisher score. The scores are computed every ``refresh`` rounds.

    Parameters
    ----------
    federation : its clients may differ in budget.
    allocation : how layers are allocated, as above.
    shape, base : the geometric shape, and the end of the model at which a triangle has its base.
    sampler : ``gumbel`` (sequential draws, as in the paper) or ``madow`` (inclusion proportional to the odds).
    coverage : swap layers in a cohort's allocation until each has a client, where budgets allow. Not in ``gd``.
    warmup, refresh : number of rounds; both default to a tenth of all rounds. As all below, only for ``fim``.
    scores_from : ``server`` (on its proxy set) or ``clients`` (without public data: each sends its own L scores), which
        a run file without ``data.proxy`` gets if it leaves this out.
    score : how the Fisher diagonal becomes one score per layer, see ``client.probe.layer_scores``.
    smoothing : beta of the scores' moving average over refreshes, in [0, 1).
    log_scores : cluster the logarithm of the scores.
    weighting : clients' weights in the mean, by ``examples`` or ``uniform``.

    Raises
    ------
    ConfigError
        if the server is to compute Fisher scores and has no proxy set.

    Paper: fed-hello, schedule
    """
    num_layers = federation.layout.num_layers
    budgets = sorted({profile.budget.layers for profile in federation.profiles})
    prior = odds(counts(shape, num_layers, budgets, base=base))
    sampled = madow if sampler == "madow" else draw

    def allocate(state: FedHelloState, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        if allocation == "gd":
            return {p.id: gd_set(shape, num_layers, p.budget.layers, base) for p in turn.cohort}
        probabilities = state.get("probabilities") or prior
        chosen = {p.id: sampled(probabilities, p.budget.layers, turn.rng.child("layers", p.id)) for p in turn.cohort}
        return cover(chosen, num_layers, turn.rng.child("coverage")) if coverage else chosen

    method = layered("fed-hello", federation, allocate, weighting=weighting)
    if allocation != "fim":
        return method
    due = refreshes(federation, warmup, refresh)

    def renewed(state: FedHelloState, scores: Sequence[float]) -> FedHelloState:
        """The state with the odds of the smoothed scores; unchanged if a score of a diverged model is not finite."""
        if not all(map(math.isfinite, scores)):
            return state
        averaged = list(smoothed(state["scores"], scores, smoothing))
        probabilities = list(odds(layer_weights(averaged, log=log_scores)))
        return {**state, "scores": averaged, "probabilities": probabilities, "refreshed": state["round"]}

    scored = _scored_by_server if scores_from == "server" else _scored_by_clients
    return scored(_counting_rounds(method), federation, due, renewed, score)


def traits(settings: Mapping[str, Any]) -> Traits:
    """Averaging of any tensors; Fisher scores require low-rank factors."""
    scored = settings["allocation"] == "fim"
    return Traits(
        needs="factors" if scored else "tensors",
        sends_scores=scored and settings["scores_from"] == "clients",
        stateless=True,
    )


Due = Callable[[int], bool]
"""Whether layers are scored before the round with this number."""
Renewed = Callable[[FedHelloState, Sequence[float]], FedHelloState]
"""The state with the odds that follow from new scores of all layers."""


def refreshes(federation: Federation, warmup: int | None, refresh: int | None) -> Due:
    """The rounds before which layers are scored: round ``warmup`` and every ``refresh`` rounds from there on.

    Both default to a tenth of all rounds. Layers are not scored after the last round.
    """
    tenth = max(1, federation.rounds // 10)
    first = tenth if warmup is None else warmup
    every = tenth if refresh is None else refresh
    return lambda number: first <= number < federation.rounds and (number - first) % every == 0


def _counting_rounds(method: Method) -> Method:
    """The method with the number of finished rounds in its state, and entries for scores and odds."""
    (fit,) = method.exchanges

    def init(rng: Rng) -> FedHelloState:
        state: ModelState = method.init(rng)
        return {**state, "round": 0, "scores": None, "probabilities": None, "refreshed": None}

    def merge(state: FedHelloState, replies: Iterable[Reply]) -> FedHelloState:
        merged: FedHelloState = fit.merge(state, replies)
        return {**merged, "round": state["round"] + 1}

    return method._replace(init=init, exchanges=(fit._replace(merge=merge),), report=_report)


def _report(state: FedHelloState) -> dict[str, Any]:
    """The current scores and odds of the layers, and the round before which they were computed, if there are any."""
    kept: dict[str, Any] = {key: state[key] for key in ("scores", "probabilities", "refreshed")}
    return {key: value for key, value in kept.items() if value is not None}


def _scored_by_server(method: Method, federation: Federation, due: Due, renewed: Renewed, score: str) -> Method:
    """The method whose server computes the scores of its model's layers on its proxy set when they are due."""
    server = federation.proxy
    if server is None:
        raise ConfigError(
            "method.scores_from = 'server', but the server has no rows of its own: set data.proxy to a number of rows "
            "(100, say), or method.scores_from = 'clients'"
        )
    (fit,) = method.exchanges

    def scored(state: FedHelloState) -> FedHelloState:
        if not due(state["round"]):
            return state
        return renewed(state, server.layer_scores(method.view(state, server.profile), kind=score))

    def init(rng: Rng) -> FedHelloState:
        return scored(method.init(rng))

    def merge(state: FedHelloState, replies: Iterable[Reply]) -> FedHelloState:
        return scored(fit.merge(state, replies))

    return method._replace(init=init, exchanges=(fit._replace(merge=merge),))


def _scored_by_clients(method: Method, federation: Federation, due: Due, renewed: Renewed, score: str) -> Method:
    """The method whose clients send scores of the model that they received, in the round before a refresh."""
    (fit,) = method.exchanges
    names = tuple(f"score_{layer}" for layer in range(federation.layout.num_layers))

    def ask(state: FedHelloState, turn: Turn) -> Mapping[ClientId, Order]:
        orders, wanted = fit.ask(state, turn), due(turn.round + 1)
        return {k: Order(order.params, {**order.settings, "score": wanted}) for k, order in orders.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        reply, memory = fit.work(client, order, memory)
        if not order.settings["score"]:
            return reply, memory
        scores = client.layer_scores(order, memory, kind=score)
        metrics = {**reply.metrics, **dict(zip(names, scores, strict=True))}
        return Reply(reply.client, reply.params, reply.weight, metrics), memory

    def merge(state: FedHelloState, replies: Iterable[Reply]) -> FedHelloState:
        wanted = due(state["round"] + 1)
        sent: list[tuple[float, list[float]]] = []

        def noted() -> Iterator[Reply]:
            for reply in replies:
                if wanted and all(name in reply.metrics for name in names):
                    sent.append((reply.weight, [reply.metrics[name] for name in names]))
                yield reply

        state = fit.merge(state, noted())
        return renewed(state, _mean_scores(sent)) if sent else state

    def metrics(order: Order) -> dict[str, Range]:
        return {**METRICS, **(dict.fromkeys(names, Range(0.0, 1e30)) if order.settings["score"] else {})}

    return method._replace(exchanges=(fit._replace(ask=ask, work=work, merge=merge, metrics=metrics),))


def _mean_scores(sent: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """The weighted mean of the clients' scores, layer by layer, from their weights and scores.

    If the sum of a client's scores is more than ``core.defence.RATIO`` squared times the median, as scores are squares,
    its scores are scaled down to that bound. Scores have no common scale, and a single client could otherwise determine
    the ranking.
    """
    sums = [math.fsum(scores) for _, scores in sent]
    factors = [most / own if most < own else 1.0 for own, most in zip(sums, limited(sums, RATIO**2), strict=True)]
    total = sum(weight for weight, _ in sent)
    columns = zip(*(scores for _, scores in sent), strict=True)
    weights = [weight * factor for (weight, _), factor in zip(sent, factors, strict=True)]
    return [sum(w * score for w, score in zip(weights, column, strict=True)) / total for column in columns]
