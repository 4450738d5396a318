"""Scores of a run: in each round, and of the final model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.report.runs import Run, as_number

WHO = {
    "global": "Global model on the common test set",
    "clients-mean": "Clients on their own test sets (mean)",
    "clients-weighted": "Clients on their own test sets (mean by number of examples)",
    "clients-worst": "Worst client on its own test set",
    "clients-deviation": "Deviation over clients on their own test sets",
    "received-mean": "Clients on their own test sets, as received (mean)",
}
"""The scores that a curve can show, with the curve's title."""

LOWER_IS_BETTER = ("loss", "perplexity")


def main_metric(run: Run) -> str:
    """Return the metric to show first: accuracy if it was measured, otherwise loss."""
    for line in run.rounds:
        evaluation = line.get("evaluation") or {}
        of_groups, clients = evaluation.get("groups") or {}, evaluation.get("clients") or {}
        for scores in (evaluation.get("global"), *of_groups.values(), *clients.values()):
            if scores:
                return "accuracy" if "accuracy" in scores else "loss"
    return "accuracy"


def scale_of(metric: str) -> tuple[float, str]:
    """Return the factor that a metric is multiplied by where it is drawn, and the label of its axis."""
    return (100.0, "accuracy (%)") if metric == "accuracy" else (1.0, metric)


def curve(run: Run, metric: str = "accuracy", who: str = "global") -> tuple[list[int], list[float]]:
    """Return the rounds in which a metric was measured, and its values; NaN stands for a number that was not finite.

    ``who`` is one of the following:

    - ``global``: the server's model on the common test set;
    - ``clients-mean``: the clients' models on their own test sets, unweighted mean;
    - ``clients-weighted``: the same, weighted by the number of test examples;
    - ``clients-worst``: the lowest client, or the highest for a loss;
    - ``clients-deviation``: the sample standard deviation (n - 1) over at least two clients;
    - ``received-mean``: the model as the clients of a round received it, before training, on their own test sets,
      unweighted mean.

    Raises
    ------
    ConfigError
        if ``who`` is none of these.
    """
    if who not in WHO:
        raise ConfigError(f"who = {who!r} is not known{suggestion(who, [*WHO])}; allowed: {', '.join(WHO)}.")
    rounds, values = [], []
    for line in run.rounds:
        value = score_of(line, metric, who)
        if value is not None:
            rounds.append(int(line["round"]))
            values.append(value)
    return rounds, values


def client_curves(run: Run, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    """Return the rounds in which each client's model was scored on its own test rows, and the scores, by client."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for line in run.rounds:
        for client, scores in ((line.get("evaluation") or {}).get("clients") or {}).items():
            if metric in scores:
                rounds, values = found.setdefault(int(client), ([], []))
                rounds.append(int(line["round"]))
                values.append(as_number(scores[metric]))
    return found


def received_curves(run: Run, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    """Return the same of the model as each client received it, before training."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for line in run.rounds:
        for exchange in line.get("exchanges") or ():
            for client, sent in (exchange.get("clients") or {}).items():
                if f"received_{metric}" in (sent.get("metrics") or {}):
                    rounds, values = found.setdefault(int(client), ([], []))
                    rounds.append(int(line["round"]))
                    values.append(as_number(sent["metrics"][f"received_{metric}"]))
    return found


def window(run: Run, last: int | None = None) -> int:
    """Return over how many last evaluated rounds a run is averaged: ``last``, or ``evaluation.last`` of its run file.

    Raises
    ------
    ConfigError
        if ``last`` is below 1.
    """
    if last is not None and last < 1:
        raise ConfigError(f"last = {last!r} is not allowed; at least 1 evaluated round must be averaged.")
    return last or int((run.config.get("evaluation") or {}).get("last") or 5)


def final_score(run: Run, metric: str, who: str) -> float | None:
    """What the model scores that a finished run ends with, which is the one that is exported; None if not measured.

    ``who`` is as for ``curve``. Scores of every client with its final model are there where they were evaluated after
    each round, or in a closing exchange.
    """
    return _value(final_evaluation(run), metric, who)


def final_evaluation(run: Run) -> Mapping[str, Any]:
    """Return the scores of a finished run's final model, in the form of a round's evaluation."""
    if not run.finished or run.result is None:
        return {}
    return run.result.get("final") or run.rounds[-1].get("evaluation") or {}


def score_of(line: Mapping[str, Any], metric: str, who: str) -> float | None:
    """Return the metric in one round, as in ``curve``; None if it was not measured."""
    return _received(line, metric) if who == "received-mean" else _value(line.get("evaluation") or {}, metric, who)


def _value(evaluation: Mapping[str, Any], metric: str, who: str) -> float | None:
    if who == "global":
        scores = evaluation.get("global") or {}
        return as_number(scores[metric]) if metric in scores else None
    measured = [scores for scores in (evaluation.get("clients") or {}).values() if metric in scores]
    values = np.array([as_number(scores[metric]) for scores in measured])
    if len(values) == 0:
        return None
    if who == "clients-worst":
        return float(values.max() if metric in LOWER_IS_BETTER else values.min())
    if who == "clients-deviation":
        return float(values.std(ddof=1)) if len(values) > 1 else None
    if who == "clients-weighted":
        examples = np.array([float(scores.get("examples", 0)) for scores in measured])
        return float(values @ examples / examples.sum()) if examples.sum() > 0 else None
    return float(values.mean())


def _received(line: Mapping[str, Any], metric: str) -> float | None:
    values = [
        as_number(sent["metrics"][f"received_{metric}"])
        for exchange in line.get("exchanges") or ()
        for sent in (exchange.get("clients") or {}).values()
        if f"received_{metric}" in (sent.get("metrics") or {})
    ]
    return float(np.mean(values)) if values else None
