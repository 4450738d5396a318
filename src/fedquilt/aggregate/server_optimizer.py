"""A server optimiser as a wrapper of any method: it steps towards the tensors that the method's merge proposes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fedquilt.aggregate.server_step import Moments, adam_step, momentum_step, no_moments, num_stalled, yogi_step
from fedquilt.aggregate.settings import ServerOptimizer
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ModelState, Params, Reply

_Step = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Moments], tuple[Params, Moments]]


class OptimizedState(ModelState):
    """The state of a server that steps, besides the method's own.

    Attributes
    ----------
    moments
        The optimiser's moments, so that a checkpoint holds them.
    stalled
        The number of tensors that adam or yogi hardly moved in the last step because their moments are too large, see
        ``server_step.num_stalled``. The record of a round holds it too.
    """

    moments: Moments
    stalled: int


def with_server_optimizer(method: Method, settings: ServerOptimizer, *, apart: Collection[str] = ()) -> Method:
    """The method whose server updates ``state["params"]`` by a step of FedAvgM, FedAdam or FedYogi.

    The pseudo-gradient is the ``params`` after ``merge`` minus those before; every merge is one step.

    A tensor that nobody sent (``merge`` gives the same object) is not changed, and neither are its moments: a layer
    that nobody trained is not moved by momentum of earlier rounds, which continues when the layer is trained again. A
    tensor that was sent unchanged is a step with pseudo-gradient 0, in which its remaining momentum moves it. Values
    that ``merge`` computes from its new ``params`` (a Fisher score, say) refer to the proposal, before the step.

    ``apart`` are the names of tensors that are taken from ``merge`` without a step, such as running statistics. With
    ``"none"`` this is the method itself.

    Raises
    ------
    ConfigError
        from ``init``, if the state holds no ``params``.
    """
    kind = settings.server_optimizer
    if kind == "none":
        return method
    step = _step(settings)

    def init(rng: Rng) -> OptimizedState:
        state: ModelState = method.init(rng)
        if not isinstance(state, Mapping) or not state.get("params"):
            raise ConfigError(
                f"aggregation.server_optimizer = '{kind}': the server of method '{method.name}' keeps no common "
                "tensors that it could move; set aggregation.server_optimizer = 'none'"
            )
        return {**state, "moments": no_moments(), "stalled": 0}

    def stepping(exchange: Exchange) -> Exchange:
        def merge(state: OptimizedState, replies: Iterable[Reply]) -> OptimizedState:
            merged: OptimizedState = exchange.merge(state, replies)
            before, proposed = without(state["params"], apart), without(merged["params"], apart)
            params, moments = step(before, proposed, state["moments"])
            fresh = params if kind == "momentum" else step(before, proposed, no_moments())[0]
            stalled = num_stalled(before, params, fresh)
            return {**merged, "params": {**merged["params"], **params}, "moments": moments, "stalled": stalled}

        return exchange._replace(merge=merge)

    def report(state: OptimizedState) -> dict[str, Any]:
        return {**method.report(state), "stalled": state["stalled"]}

    exchanges = tuple(stepping(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, report=report)


def _step(settings: ServerOptimizer) -> _Step:
    rate, beta = settings.learning_rate, settings.server_momentum
    if settings.server_optimizer == "momentum":
        return partial(momentum_step, learning_rate=rate, beta=beta)
    adaptive = adam_step if settings.server_optimizer == "adam" else yogi_step
    return partial(adaptive, learning_rate=rate, beta1=beta, beta2=settings.server_beta2, tau=settings.server_tau)
