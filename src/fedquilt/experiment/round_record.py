"""What a run writes of a round and of its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedquilt.core.loop import Round, Traffic
from fedquilt.core.training import learning_rate_at
from fedquilt.core.types import ClientId, Memory, Tree
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.export import is_whole
from fedquilt.experiment.groups import BuiltGroup


def evaluate(
    experiment: Experiment, state: Tree, memories: Mapping[ClientId, Memory], *, clients: bool = True
) -> dict[str, Any]:
    """Accuracy and loss of the global model on the global test rows, and of each client's on its own held-out rows.

    ``clients`` are the scores on test rows by client, ``validation`` those on validation rows (if any are kept).
    ``global`` is None where the method holds no whole model on the server (its head or adapters stay with the clients).
    In a federation of groups it is always None, and ``groups`` are the scores of each group's global model, by label.
    The clients are evaluated where the config wants it, unless ``clients`` is False.
    """
    whole = {group.label: _judged(experiment, group, state) for group in experiment.groups}
    scores: dict[str, Any] = {"global": whole.get(""), "clients": {}}
    if experiment.config.groups:
        scores["groups"] = whole
    view = experiment.method.view
    if not clients or experiment.config.evaluation.clients is not True:
        return scores
    for key, split in (("clients", "test"), ("validation", "validation")):
        for id, client in experiment.clients.items():
            if own := client.evaluate(view(state, client.profile), memories.get(id), split):
                scores.setdefault(key, {})[str(id)] = own
    return scores


def _judged(experiment: Experiment, group: BuiltGroup, state: Tree) -> dict[str, float] | None:
    """The scores of a group's global model, if there is one and rows to judge it by."""
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
    """A finished round as its line of the record, evaluated where that is due; ``messages`` are the round's own.

    ``clients`` says whether the clients, whose memories these are, are in this process and can be evaluated here.
    """
    config, number = experiment.config, done.number
    due = (number + 1) % config.evaluation.every == 0 or number >= config.rounds - config.evaluation.last
    rates = [learning_rate_at(group.server.training, number, config.rounds) for group in experiment.groups]
    began = time.perf_counter()
    scores = evaluate(experiment, done.state, memories, clients=clients) if due else None
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
    """What an exchange moved and brought, as the record keeps it."""
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
    """Of the end of a run: the scores of the model that it ends with, and what measuring them cost.

    ``evaluation`` is the last round's; closing exchanges add what each client scored with the final model on its own
    test rows. ``messages`` were sent for them over a network, by type.
    """
    scores = dict(evaluation)
    if closing:
        scored = {str(client): dict(own) for moved in closing for client, own in moved.metrics.items() if own}
        scores["clients"] = {**scores["clients"], **scored}
    return {"final": scores, "closing": {"exchanges": [_moved(moved) for moved in closing], "messages": dict(messages)}}
