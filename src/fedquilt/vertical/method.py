"""Vertical methods from recipes: the exchanges of a federation as a method."""

from __future__ import annotations

from typing import Any

from fedquilt.core.errors import TrainingError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.server import ServerState
from fedquilt.core.types import Order, Params
from fedquilt.core.vertical import Vertical
from fedquilt.vertical.active import ActiveState, first_state
from fedquilt.vertical.exchanges import PREDICT, Exchanges
from fedquilt.vertical.party import party_of
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.selection import NONE_SEEN
from fedquilt.vertical.telling import KEPT


def vertical_of(federation: Federation, name: str) -> Vertical:
    """The active party of a vertical federation.

    Raises
    ------
    TrainingError
        if the federation is not vertical.
    """
    if federation.vertical is None:
        raise TrainingError(f"method '{name}' is of vertical federations; set partition.scheme = 'vertical'")
    return federation.vertical


def vertical_method(name: str, federation: Federation, recipe: Recipe) -> Method:
    """The method of a recipe, for a vertical federation."""
    vertical = vertical_of(federation, name)
    return exchanged(name, Exchanges(vertical, recipe, party_of(vertical.active)))


def exchanged(name: str, own: Exchanges) -> Method:
    """The method of these exchanges."""
    exchanges = (
        Exchange(
            "embed",
            own.ask_embeddings,
            own.embed,
            own.merge_embeddings,
            expects=own.expected,
            ranges=own.ranges,
        ),
        Exchange("follow", own.ask_gradients, own.follow, own.forget_gradients, expects=_nothing),
        Exchange(PREDICT, own.ask_test, own.show_test, own.merge_test, expects=own.expected_test, ranges=own.ranges),
    )
    return Method(
        name,
        lambda rng: first_state(own.vertical, own.recipe.joint, rng, own.recipe.semantic),
        exchanges,
        lambda state, profile: Order({}),
        report=_report,
        server=_server,
        scores=lambda state: state["predicted"].get("scores", {}),
        logits=own.logits,
    )


def _nothing(order: Order) -> Params:
    return {}


def _report(state: ActiveState) -> dict[str, Any]:
    found = {name: float(one) for name, one in state.get("calibration", {}).items()}
    kept = {name: [_rounded(share) for share in own.tolist()] for name, own in state.get("kept", {}).items()}
    told = {KEPT: kept} if kept else {}
    return {**found, **told, **{name: table for name, table in state["predicted"].items() if name != "scores"}}


def _rounded(share: float) -> float | None:
    """A share with three digits; None for a class without rows."""
    return None if share == NONE_SEEN else round(share, 3)


def _server(state: ActiveState) -> ServerState:
    own = state["own"]
    return ServerState(params=own["params"], memory={}, seed=state["seed"], round=state["round"])
