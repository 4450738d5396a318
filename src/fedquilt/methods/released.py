"""Fed-HeLLo with the layer allocation of its released code, to measure the effect of its deviations from the paper."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fedquilt.allocate.importance import layer_weights
from fedquilt.allocate.layers import odds
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Reply, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.fed_hello import SCORED, FedHelloState, fed_hello, refreshes
from fedquilt.methods.fed_hello import traits as traits


class ReleasedState(FedHelloState):
    """The state with labels in arbitrary order: ``seed`` draws them."""

    seed: int


def fed_hello_released(
    federation: Federation,
    *,
    reuse: Annotated[Literal["resample", "hold", "reference"], SCORED] = "reference",
    objective: Annotated[Literal["log-prob", "logit"], SCORED] = "logit",
    label_order: Annotated[Literal["ranked", "arbitrary"], SCORED] = "arbitrary",
    **settings: Any,
) -> Method:
    """Fed-HeLLo with the layer allocation of its released code; each deviation from ``fed_hello`` can be switched off.

    Parameters
    ----------
    federation : as for ``fed_hello``.
    reuse : ``reference`` (the Fisher odds are used only in the round of a refresh), ``hold`` (as in a fork: the drawn
        layers are kept between refreshes) or ``resample`` (the odds stay in use, as in ``fed_hello``).
    objective : whether the Fisher score uses the gradient of the ``logit`` of a row's label, or of its ``log-prob``.
    label_order : ``arbitrary`` (the ranks are the arbitrary labels of a k-means clustering) or ``ranked``.
    settings : all other settings, as for ``fed_hello``.

    Raises
    ------
    ConfigError
        as ``fed_hello``.
    """
    if objective == "logit":
        by_logit = {name: _by_logit(server) for name, server in federation.proxies.items()}
        federation = replace(federation, proxies=by_logit)
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
    """The signature of a factory that passes its ``**settings`` to another one: the settings of both."""
    own, inner = (inspect.signature(factory, eval_str=True).parameters.values() for factory in (wrapper, wrapped))
    return inspect.Signature([*inner, *(one for one in own if one.kind is one.KEYWORD_ONLY)])


vars(fed_hello_released)["__signature__"] = _settings_of_both(fed_hello_released, fed_hello)


class _ByLogit:
    """A client whose layer scores use the logit of a row's label; all else is unchanged."""

    def __init__(self, client: Worker) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def layer_scores(self, order: Order, memory: Memory | None = None, *, kind: str) -> list[float]:
        return self._client.layer_scores(order, memory, kind=kind, objective="logit")


def _by_logit(client: Worker) -> Worker:
    return cast(Worker, _ByLogit(client))  # it passes everything else on


def _clients_by_logit(method: Method) -> Method:
    """The method whose clients compute layer scores from logits."""
    (fit,) = method.exchanges

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return fit.work(_by_logit(client), order, memory)

    return method._replace(exchanges=(fit._replace(work=work),))


def _with_arbitrary_ranks(method: Method, log: bool) -> Method:
    """The method that assigns the weights 1, 2 and 3 to the clusters of layers in a random order at every refresh."""
    (fit,) = method.exchanges

    def redrawn(state: ReleasedState) -> ReleasedState:
        scores, refreshed = state["scores"], state["refreshed"]
        if scores is None or refreshed is None:
            return state
        rng = Rng(state["seed"], ("labels", refreshed))
        return {**state, "probabilities": list(odds(shuffled(layer_weights(scores, log=log), rng)))}

    def init(rng: Rng) -> ReleasedState:
        first: FedHelloState = method.init(rng)
        return redrawn({**first, "seed": rng.seed})

    def merge(state: ReleasedState, replies: Iterable[Reply]) -> ReleasedState:
        after: ReleasedState = fit.merge(state, replies)
        return after if after["refreshed"] == state["refreshed"] else redrawn(after)

    return method._replace(init=init, exchanges=(fit._replace(merge=merge),))


def shuffled(weights: Sequence[int], rng: Rng) -> tuple[int, ...]:
    """The weights, 1 to 3, permuted at random, like the labels of a k-means clustering that are used as ranks."""
    labels = rng.numpy().permutation(3).tolist()
    return tuple(labels[weight - 1] + 1 for weight in weights)


def _asking(method: Method, seen: Callable[[FedHelloState, Turn], tuple[FedHelloState, Turn]]) -> Method:
    """The method that allocates layers from the state and turn that ``seen`` returns."""
    (fit,) = method.exchanges

    def ask(state: FedHelloState, turn: Turn) -> Mapping[ClientId, Order]:
        return fit.ask(*seen(state, turn))

    return method._replace(exchanges=(fit._replace(ask=ask),))


def _with_odds_used_once(method: Method, due: Callable[[int], bool]) -> Method:
    """The method that draws with Fisher odds in the round of a refresh and with the geometric odds in all others."""
    return _asking(method, lambda state, turn: (state if due(turn.round) else {**state, "probabilities": None}, turn))


def _with_layers_held(method: Method) -> Method:
    """The method that draws the same layers in every round from one refresh to the next."""

    def seen(state: FedHelloState, turn: Turn) -> tuple[FedHelloState, Turn]:
        refreshed = state["refreshed"]
        return state, turn if refreshed is None else replace(turn, rng=Rng(turn.rng.seed, ("hold", refreshed)))

    return _asking(method, seen)
