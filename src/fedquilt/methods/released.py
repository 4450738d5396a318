"""Fed-HeLLo as its released code chooses layers, to measure what the departures from the paper are worth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fedquilt.allocate.importance import layer_weights
from fedquilt.allocate.layers import odds
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Federation, Memory, Order, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.fed_hello import SCORED, fed_hello, refreshes


def fed_hello_released(
    federation: Federation,
    *,
    reuse: Annotated[Literal["resample", "hold", "reference"], SCORED] = "reference",
    objective: Annotated[Literal["log-prob", "logit"], SCORED] = "logit",
    label_order: Annotated[Literal["ranked", "arbitrary"], SCORED] = "arbitrary",
    **settings: Any,
) -> Method:
    """Fed-HeLLo as its released code chooses layers; each departure can be switched off, and the rest is ``fed_hello``.

    Settings
    --------
    reuse : ``reference`` (the Fisher odds serve only in the round of a refresh), ``hold`` (a fork's: the drawn layers
        themselves are kept between refreshes) or ``resample`` (the odds stay in force, as in ``fed_hello``).
    objective : the Fisher score is of the gradient of the raw ``logit`` of a row's label, or of its ``log-prob``.
    label_order : ``arbitrary`` (the numbers that a k-means happens to give its clusters serve as ranks) or ``ranked``.

    All other settings are those of ``fed_hello``.

    Raises
    ------
    ConfigError
        as ``fed_hello`` does.
    """
    if objective == "logit" and federation.server is not None:
        federation = replace(federation, server=_ByLogit(federation.server))
    method = fed_hello(federation, **settings)._replace(name="fed-hello-released")
    if settings.get("allocation", "fim") != "fim":
        return method
    if objective == "logit":
        method = _clients_by_logit(method)
    if label_order == "arbitrary":
        method = _with_arbitrary_ranks(method, log=settings.get("log_scores", False))
    if reuse == "hold":
        return _with_layers_held(method)
    if reuse == "reference":
        return _with_odds_used_once(method, refreshes(federation, settings.get("warmup"), settings.get("refresh")))
    return method


def _settings_of_both(wrapper: Callable[..., Method], wrapped: Callable[..., Method]) -> inspect.Signature:
    """The signature of a factory that hands its ``**settings`` on to another one: the settings of both."""
    own, inner = (inspect.signature(factory, eval_str=True).parameters.values() for factory in (wrapper, wrapped))
    return inspect.Signature([*inner, *(one for one in own if one.kind is one.KEYWORD_ONLY)])


vars(fed_hello_released)["__signature__"] = _settings_of_both(fed_hello_released, fed_hello)


class _ByLogit:
    """A client that scores layers by the raw logit of a row's label, and is itself in all else."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def layer_scores(self, order: Order, memory: Memory | None = None, *, kind: str) -> list[float]:
        scores: list[float] = self._client.layer_scores(order, memory, kind=kind, objective="logit")
        return scores


def _clients_by_logit(method: Method) -> Method:
    """The method, whose clients score layers by raw logits."""
    (fit,) = method.exchanges

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return fit.work(cast(Worker, _ByLogit(client)), order, memory)

    return method._replace(exchanges=(fit._replace(work=work),))


def _with_arbitrary_ranks(method: Method, log: bool) -> Method:
    """The method, with the weights 1, 2 and 3 given to the clusters of layers in a drawn order at every refresh."""
    (fit,) = method.exchanges

    def redrawn(state: Tree) -> Tree:
        rng = Rng(state["seed"], ("labels", state["refreshed"]))
        return {**state, "probabilities": list(odds(shuffled(layer_weights(state["scores"], log=log), rng)))}

    def init(rng: Rng) -> Tree:
        state = {**method.init(rng), "seed": rng.seed}
        return state if state["refreshed"] is None else redrawn(state)

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        after = fit.merge(state, replies)
        return after if after["refreshed"] == state["refreshed"] else redrawn(after)

    return method._replace(init=init, exchanges=(fit._replace(merge=merge),))


def shuffled(weights: Sequence[int], rng: Rng) -> tuple[int, ...]:
    """The weights, 1 to 3, each replaced by its place in a drawn order: as labels of a k-means that serve as ranks."""
    labels = rng.numpy().permutation(3).tolist()
    return tuple(labels[weight - 1] + 1 for weight in weights)


def _asking(method: Method, seen: Callable[[Tree, Turn], tuple[Tree, Turn]]) -> Method:
    """The method, which chooses layers as if state and turn were what ``seen`` makes of them."""
    (fit,) = method.exchanges

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return fit.ask(*seen(state, turn))

    return method._replace(exchanges=(fit._replace(ask=ask),))


def _with_odds_used_once(method: Method, due: Callable[[int], bool]) -> Method:
    """The method, which draws by Fisher odds in the round of a refresh and by the geometric odds in all others."""
    return _asking(method, lambda state, turn: (state if due(turn.round) else {**state, "probabilities": None}, turn))


def _with_layers_held(method: Method) -> Method:
    """The method, which draws the same layers in every round from one refresh to the next."""

    def seen(state: Tree, turn: Turn) -> tuple[Tree, Turn]:
        if state["probabilities"] is None:
            return state, turn
        return state, replace(turn, rng=Rng(turn.rng.seed, ("hold", state["refreshed"])))

    return _asking(method, seen)
