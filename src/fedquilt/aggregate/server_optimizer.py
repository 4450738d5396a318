"""A server optimiser around any method: its merge proposes tensors, and the optimiser steps towards them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from fedquilt.aggregate.server_step import adam_step, momentum_step, no_moments, num_stalled, yogi_step
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params, Reply, Tree

MOMENTS = "moments"
"""The key of the server's state under which the optimiser's running means lie."""

STALLED = "stalled"
"""The key under which the server's state, and so the record, has how many tensors the last step hardly moved at all."""

KINDS = ("momentum", "adam", "yogi")

LEARNING_RATES = {"momentum": 1.0, "adam": 1e-3, "yogi": 1e-3}
"""Server learning rates that are used if none is given: momentum starts from the plain mean."""

Kind = Literal["momentum", "adam", "yogi"]
_Step = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tree], tuple[Params, Tree]]


def with_server_optimizer(
    method: Method,
    kind: Kind,
    *,
    learning_rate: float | None = None,
    momentum: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    apart: Collection[str] = (),
) -> Method:
    """The method whose server moves its ``state["params"]`` by a step of FedAvgM, FedAdam or FedYogi.

    The pseudo-gradient is what ``merge`` makes of ``params`` minus what they were; every merge is one step. The moments
    lie in the state under ``moments``, so a checkpoint holds them; ``stalled`` counts the tensors that adam or yogi
    hold back so far that they do not move, see ``server_step.num_stalled``. ``momentum`` is beta 1 of adam and yogi,
    which alone use ``beta2`` and ``tau``; ``learning_rate`` None is 1 for momentum and 0.001 for the others.

    A tensor that nobody sent (``merge`` gives the same object) stays, and so do its moments: a layer that nobody
    trained is not moved by what is left of earlier rounds, and goes on from its moments when somebody trains it again.
    One that was sent and came back as it was is a step with pseudo-gradient 0: no bit of a tensor changes before it has
    moved for the first time; later, what is left of its momentum moves it. Tensors ``apart`` (running
    statistics, which no gradient moves) are what ``merge`` makes of them. What ``merge`` itself works out from its new
    ``params`` (a Fisher score, say) is of the proposal, before the step.

    Raises
    ------
    ValueError
        if there is no such kind, or a number is out of range.
    ConfigError
        from ``init``, if the state holds no ``params``.
    """
    step = _step(kind, LEARNING_RATES.get(kind) if learning_rate is None else learning_rate, momentum, beta2, tau)
    step({}, {}, no_moments())  # a number out of range shows now

    def init(rng: Rng) -> Tree:
        state = method.init(rng)
        if not isinstance(state, Mapping) or not state.get("params"):
            raise ConfigError(
                f"aggregation.server_optimizer = '{kind}': the server of method '{method.name}' keeps no common "
                "tensors that it could move; set aggregation.server_optimizer = 'none'"
            )
        return {**state, MOMENTS: no_moments(), STALLED: 0}

    def stepping(exchange: Exchange) -> Exchange:
        def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
            merged = exchange.merge(state, replies)
            before, proposed = without(state["params"], apart), without(merged["params"], apart)
            params, moments = step(before, proposed, state[MOMENTS])
            fresh = params if kind == "momentum" else step(before, proposed, no_moments())[0]
            stalled = num_stalled(before, params, fresh)
            return {**merged, "params": {**merged["params"], **params}, MOMENTS: moments, STALLED: stalled}

        return exchange._replace(merge=merge)

    def report(state: Tree) -> dict[str, Any]:
        return {**method.report(state), STALLED: state[STALLED]}

    exchanges = tuple(stepping(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, report=report)


def _step(kind: str, learning_rate: float | None, momentum: float, beta2: float, tau: float) -> _Step:
    if kind not in KINDS or learning_rate is None:
        raise ValueError(f"there is no server optimiser '{kind}'{suggestion(kind, KINDS)}; allowed: {', '.join(KINDS)}")
    if kind == "momentum":
        return partial(momentum_step, learning_rate=learning_rate, beta=momentum)
    adaptive = adam_step if kind == "adam" else yogi_step
    return partial(adaptive, learning_rate=learning_rate, beta1=momentum, beta2=beta2, tau=tau)
