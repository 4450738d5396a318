"""The record of a finished round and of the end of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fedquilt.client.together import evaluated
from fedquilt.core.evaluated import without_auto
from fedquilt.core.loop import Round, Traffic
from fedquilt.core.profiling import span
from fedquilt.core.training import learning_rate_at
from fedquilt.core.types import ClientId, Memory, Order, Tree
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.engine import Engine
from fedquilt.experiment.export import is_whole
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.round_due import is_due


def evaluate(
    experiment: Experiment,
    state: Tree,
    memories: Mapping[ClientId, Memory],
    cohort: Collection[ClientId],
    *,
    clients: bool = True,
) -> dict[str, Any]:
    """Accuracy and loss of the global model on the common test rows, and of each client's model on its own rows.

    ``clients`` are the scores on test rows by client, ``validation`` those on validation rows, if there are any.
    ``global`` is None if the server has no whole model because head or adapters stay with the clients. In a federation
    of groups it is always None, and ``groups`` are the scores of each group's global model, by label.
    ``server`` are the scores of the model that the server owns, on its own test rows, if it owns one. In a vertical
    federation ``global`` are the scores of the parties' joint prediction.

    Parameters
    ----------
    experiment, state, memories
        The experiment, the server's state and the clients' memories.
    cohort
        The clients that took part in the round.
    clients
        Whether clients are evaluated at all; which of them, the config says.
    """
    if experiment.method.scores is not None:
        return {"global": dict(experiment.method.scores(state)) or None, "clients": {}}
    whole = {group.label: _global_scores(experiment, group, state) for group in experiment.groups}
    scores: dict[str, Any] = {"global": whole.get(""), "clients": {}}
    if experiment.config.groups:
        scores["groups"] = whole
    if experiment.owner is not None and experiment.method.server is not None:
        owned = experiment.method.server(state)
        scores["server"] = experiment.owner.server.evaluate(Order(owned["params"]), owned["memory"]) or None
    view = experiment.method.view
    who = without_auto(experiment.config.evaluation.clients, len(experiment.clients)) if clients else False
    chosen = experiment.clients if who is True else sorted(cohort) if who == "cohort" else ()
    for key, split in (("clients", "test"), ("validation", "validation")):
        asked = ((experiment.clients[id], memories.get(id)) for id in chosen)
        found = evaluated(((client, view(state, client.profile), memory) for client, memory in asked), split)
        if found:
            scores[key] = {str(id): own for id, own in found.items()}
    return scores


def _global_scores(experiment: Experiment, group: BuiltGroup, state: Tree) -> dict[str, float] | None:
    """The scores of a group's global model; None if there is none or there are no test rows."""
    order = experiment.method.view(state, group.server.profile)
    return (group.server.evaluate(order) or None) if is_whole(group, order) else None


def round_line(
    experiment: Experiment,
    done: Round,
    memories: Mapping[ClientId, Memory],
    messages: Mapping[str, int],
    *,
    clients: bool,
) -> dict[str, Any]:
    """The line of the record for a finished round, with an evaluation if it is due.

    Parameters
    ----------
    experiment
        The experiment.
    done
        The finished round.
    memories
        The clients' memories after it, if they are in this process.
    messages
        The number of messages sent over a network in the round, by type.
    clients
        Whether the clients are in this process and can be evaluated here.
    """
    config, number = experiment.config, done.number
    rates = [learning_rate_at(group.server.training, number, config.rounds) for group in experiment.groups]
    began = time.perf_counter()
    cohort = {client for moved in done.traffic for client in moved.bytes_up}
    with span("evaluation"):
        scores = evaluate(experiment, done.state, memories, cohort, clients=clients) if is_due(config, number) else None
    return {
        "round": number,
        "seconds": done.seconds,
        "evaluation_seconds": time.perf_counter() - began,
        "learning_rate": rates[0],
        **({"learning_rates": rates} if config.groups else {}),
        "num_layers": max(group.layout.num_layers for group in experiment.groups),
        "exchanges": [_moved(moved) for moved in done.traffic],
        "messages": dict(messages),
        "evaluation": scores,
        "state": dict(experiment.method.report(done.state)),
    }


def _moved(moved: Traffic) -> dict[str, Any]:
    """The record of an exchange: communication cost, settings, metrics and rejected replies."""
    return {
        "exchange": moved.exchange,
        "clients": {
            str(client): {
                "bytes_down": moved.bytes_down[client],
                "bytes_up": moved.bytes_up[client],
                "settings": moved.settings[client],
                "metrics": moved.metrics[client],
                "share": moved.weights[client] / sum(moved.weights.values()),
            }
            for client in sorted(moved.bytes_up)
        },
        "dropped": {str(client): reason for client, reason in sorted(moved.dropped.items())},
        "bounded": {str(client): notes for client, notes in sorted(moved.bounded.items())},
        "dropped_bytes_down": sum(moved.bytes_down[client] for client in moved.dropped),
    }


def are_finite(line: Mapping[str, Any]) -> bool | None:
    """Whether all scores in the line of a round are finite numbers; None if there are none."""
    scored = list(_numbers(line["evaluation"]))
    for exchange in line["exchanges"]:
        for sent in exchange["clients"].values():
            scored += _numbers({name: value for name, value in sent["metrics"].items() if name.startswith("received_")})
    return all(math.isfinite(value) for value in scored) if scored else None


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _numbers(entry)
    elif isinstance(value, int | float):
        yield value


def final_record(
    evaluation: Mapping[str, Any], closing: Sequence[Traffic], messages: Mapping[str, int]
) -> dict[str, Any]:
    """The record of the end of a run: the scores of the final model, and the cost of the closing exchanges.

    ``evaluation`` is that of the last round. Closing exchanges add the scores of the final model on each client's own
    test rows. ``messages`` are the numbers of messages that they sent over a network, by type.
    """
    scores = dict(evaluation)
    if closing:
        scored = {str(client): dict(own) for moved in closing for client, own in moved.metrics.items() if own}
        scores["clients"] = {**scores["clients"], **scored}
    return {"final": scores, "closing": {"exchanges": [_moved(moved) for moved in closing], "messages": dict(messages)}}


def message_counter(engine: Engine) -> Callable[[], dict[str, int]]:
    """``since()``, which returns how many messages of each type the engine has sent since the last call."""
    counted: dict[str, int] = {}

    def since() -> dict[str, int]:
        new = {kind: count - counted.get(kind, 0) for kind, count in engine.messages.items()}
        counted.update(engine.messages)
        return new

    return since
