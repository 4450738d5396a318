"""Fed-HeLLo: each client trains only the LoRA layers it can afford, chosen by shape or by importance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fedquilt.allocate.importance import layer_weights, smoothed
from fedquilt.allocate.layers import Shape, counts, cover, draw, gd_set, madow, odds
from fedquilt.client.fit import METRICS
from fedquilt.config.value_types import FromRound, Rounds, Share, With
from fedquilt.core.bounds import RATIO, limited
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Federation, Memory, Order, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.layered import Weighting, layered
from fedquilt.methods.traits import Traits

_TRIANGLE = With("shape", ("triangle", "inverted-triangle"))
_DRAWN = With("allocation", ("rgd", "fim"))
_SCORED = With("allocation", ("fim",))


def fed_hello(
    federation: Federation,
    *,
    allocation: Literal["gd", "rgd", "fim"] = "fim",
    shape: Shape = "bottleneck",
    base: Annotated[Literal["input", "output"], _TRIANGLE] = "input",
    sampler: Annotated[Literal["gumbel", "madow"], _DRAWN] = "gumbel",
    coverage: Annotated[bool, _DRAWN] = True,
    warmup: Annotated[FromRound | None, _SCORED] = None,
    refresh: Annotated[Rounds | None, _SCORED] = None,
    scores_from: Annotated[Literal["server", "clients"], _SCORED] = "server",
    score: Annotated[Literal["trace", "mean", "norm", "squared-norm"], _SCORED] = "trace",
    objective: Annotated[Literal["log-prob", "logit"], _SCORED] = "log-prob",
    smoothing: Annotated[Share, _SCORED] = 0.8,
    log_scores: Annotated[bool, _SCORED] = False,
    reuse: Annotated[Literal["resample", "hold", "reference"], _SCORED] = "resample",
    label_order: Annotated[Literal["ranked", "arbitrary"], _SCORED] = "ranked",
    weighting: Weighting = "examples",
) -> Method:
    """Fed-HeLLo with a geometric (``gd``), randomised geometric (``rgd``) or Fisher-guided (``fim``) choice of layers.

    ``fim`` draws from the geometric odds for ``warmup`` rounds, then from odds of 3, 2 and 1 for layers of high, middle
    and low Fisher score, scored anew every ``refresh`` rounds (both default to a tenth of all rounds) and in force
    between.

    Settings
    --------
    shape, base : the geometric shape, and the end of the model at which a triangle stands.
    sampler : ``gumbel`` (sequential draws, the paper's) or ``madow`` (inclusion exactly proportional to the odds).
    coverage : swap layers in a cohort's allocation until each has a client, where budgets allow. Not in ``gd``.
    warmup to label_order : of ``fim`` alone.
    scores_from : ``server`` (its proxy rows) or ``clients`` (no public data: each sends its own L scores).
    score : how the Fisher diagonal becomes one number a layer, see ``client.probe.layer_scores``.
    smoothing : beta of the scores' moving average over refreshes, in [0, 1).
    log_scores : cluster the logarithm of the scores.
    weighting : clients' weights in the mean, by ``examples`` or ``uniform``.

    Switches for what the released code does instead, for comparison: ``reuse="reference"`` (the Fisher odds serve only
    in the round of a refresh), ``reuse="hold"`` (the fork's: the drawn layers themselves are kept between refreshes),
    ``objective="logit"`` (gradient of the raw label logit), ``label_order="arbitrary"`` (cluster numbers as ranks).

    Raises
    ------
    ConfigError
        if Fisher scores are wanted from a server that has no proxy rows, or a number is out of range.

    Paper: fed-hello, schedule
    """
    num_layers = federation.layout.num_layers
    budgets = sorted({profile.budget.layers for profile in federation.profiles})
    prior = odds(counts(shape, num_layers, budgets, base=base))
    tenth = max(1, federation.rounds // 10)
    first = tenth if warmup is None else warmup
    every = tenth if refresh is None else refresh
    _check(federation, allocation, scores_from, first, every, smoothing)

    def due(number: int) -> bool:
        """Whether layers are scored before round ``number``; there is nothing to score for after the last."""
        return allocation == "fim" and first <= number < federation.rounds and (number - first) % every == 0

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        if allocation == "gd":
            return {p.id: gd_set(shape, num_layers, p.budget.layers, base) for p in turn.cohort}
        stale = reuse == "reference" and not due(turn.round)
        probabilities = prior if stale or state["probabilities"] is None else state["probabilities"]
        rng = turn.rng
        if reuse == "hold" and state["probabilities"] is not None:
            rng = Rng(turn.rng.seed, ("hold", state["refreshed"]))
        sampled = madow if sampler == "madow" else draw
        chosen = {p.id: sampled(probabilities, p.budget.layers, rng.child("layers", p.id)) for p in turn.cohort}
        return cover(chosen, num_layers, rng.child("coverage")) if coverage else chosen

    score_names = tuple(f"score_{layer}" for layer in range(num_layers))
    trunk = layered("fed-hello", federation, allocate, weighting=weighting)
    train = trunk.exchanges[0]

    def init(rng: Rng) -> Tree:
        state = {
            **trunk.init(rng),
            "round": 0,
            "scores": None,
            "probabilities": None,
            "refreshed": None,
            "seed": rng.seed,
        }
        return scored(state, None) if due(0) and scores_from == "server" else state

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        wanted = scores_from == "clients" and due(turn.round + 1)
        orders = train.ask(state, turn)
        return {k: Order(o.params, {**o.settings, "score": wanted}) for k, o in orders.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        reply, memory = train.work(client, order, memory)
        if not order.settings["score"]:
            return reply, memory
        scores = client.layer_scores(order, memory, kind=score, objective=objective)
        metrics = {**reply.metrics, **dict(zip(score_names, scores, strict=True))}
        return Reply(reply.client, reply.params, reply.weight, metrics), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        wanted = scores_from == "clients" and due(state["round"] + 1)
        sent: list[tuple[float, list[float]]] = []

        def noted() -> Iterator[Reply]:
            for reply in replies:
                if wanted and all(name in reply.metrics for name in score_names):
                    sent.append((reply.weight, [reply.metrics[name] for name in score_names]))
                yield reply

        state = {**train.merge(state, noted()), "round": state["round"] + 1}
        if not due(state["round"]) or (scores_from == "clients" and not sent):
            return state
        return scored(state, _mean_scores(sent) if sent else None)

    def scored(state: Tree, scores: list[float] | None) -> Tree:
        """The state with new odds; the scores are the clients' mean, or else taken from the server's proxy rows."""
        if scores is None:
            order = trunk.view(state, federation.server.profile)
            scores = federation.server.layer_scores(order, kind=score, objective=objective)
        if not all(map(math.isfinite, scores)):
            return state  # of a model that clients spoiled: the odds stay as they were
        averaged = list(smoothed(state["scores"], scores, smoothing))
        rng = Rng(state["seed"], ("labels", state["round"]))
        weights = layer_weights(averaged, log=log_scores, label_order=label_order, rng=rng)
        return {**state, "scores": averaged, "probabilities": list(odds(weights)), "refreshed": state["round"]}

    def metrics(order: Order) -> dict[str, Range]:
        return {**METRICS, **(dict.fromkeys(score_names, Range(0.0, 1e30)) if order.settings["score"] else {})}

    fit = train._replace(ask=ask, work=work, merge=merge, metrics=metrics)
    return trunk._replace(init=init, exchanges=(fit,), report=_report)


def _report(state: Tree) -> dict[str, Any]:
    """The layers' scores and odds in force, and the round before which they were made; none while there are none."""
    kept = ("scores", "probabilities", "refreshed")
    return {key: state[key] for key in kept if state[key] is not None}


def traits(settings: Mapping[str, Any]) -> Traits:
    """Any tensors can be trained; the Fisher scores are of low-rank factors."""
    scored = settings["allocation"] == "fim"
    return Traits(
        needs="factors" if scored else "tensors",
        sends_scores=scored and settings["scores_from"] == "clients",
        stateless=True,
    )


def _mean_scores(sent: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """The mean of the clients' scores, given with their weights, layer by layer.

    A client whose scores add up to many times the median (``core.bounds.RATIO`` squared: scores are of squares) counts
    as with so many: scores have no common scale, and one client could else rank the layers alone.
    """
    sums = [math.fsum(scores) for _, scores in sent]
    factors = [most / own if most < own else 1.0 for own, most in zip(sums, limited(sums, RATIO**2), strict=True)]
    total = sum(weight for weight, _ in sent)
    columns = zip(*(scores for _, scores in sent), strict=True)
    weights = [weight * factor for (weight, _), factor in zip(sent, factors, strict=True)]
    return [sum(w * score for w, score in zip(weights, column, strict=True)) / total for column in columns]


def _check(federation: Federation, allocation: str, scores_from: str, warmup: int, refresh: int, beta: float) -> None:
    problems = []
    if allocation == "fim" and scores_from == "server" and federation.server is None:
        problems.append(
            "method.scores_from = 'server', but the server has no rows of its own: set data.proxy to a number of rows "
            "(100, say), or method.scores_from = 'clients'"
        )
    if warmup < 0:
        problems.append(f"method.warmup = {warmup}: must be at least 0 rounds")
    if refresh < 1:
        problems.append(f"method.refresh = {refresh}: must be at least 1 round")
    if not 0 <= beta < 1:
        problems.append(f"method.smoothing = {beta}: must be at least 0 and below 1")
    if problems:
        raise ConfigError(problems)
