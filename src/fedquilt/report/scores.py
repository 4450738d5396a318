"""What a run scored: in each round, and with the model that it ends with."""

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
"""Whose scores a curve can show, and its title."""


LOWER_IS_BETTER = ("loss", "perplexity")


def main_metric(run: Run) -> str:
    """The metric to show first: accuracy where it was measured, otherwise loss."""
    for line in run.rounds:
        evaluation = line.get("evaluation") or {}
        of_groups, clients = evaluation.get("groups") or {}, evaluation.get("clients") or {}
        for scores in (evaluation.get("global"), *of_groups.values(), *clients.values()):
            if scores:
                return "accuracy" if "accuracy" in scores else "loss"
    return "accuracy"


def curve(run: Run, metric: str = "accuracy", who: str = "global") -> tuple[list[int], list[float]]:
    """The evaluated rounds and the metric's value in each; rounds in which it was not measured are left out.

    ``who``: ``global`` (the server's model on the common test set), ``clients-mean`` (every client counts the same),
    ``clients-weighted`` (by number of test examples), ``clients-worst`` (lowest, or highest for a loss),
    ``clients-deviation`` (sample standard deviation over the clients, n - 1; needs two clients), ``received-mean``
    (what the clients of a round scored on their own test rows with what they received, before they trained on it; every
    one counts the same).
    A value written as null was not finite and comes back as nan.

    Raises:
        ConfigError: ``who`` is none of these.
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


def window(run: Run, last: int | None = None) -> int:
    """Over how many evaluated rounds at its end a run is averaged: ``last``, or ``evaluation.last`` of its run file.

    Raises:
        ConfigError: ``last`` is below 1.
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
    """The scores of the model that a finished run ends with, as its record keeps those of a round."""
    if not run.finished or run.result is None:
        return {}
    return run.result.get("final") or run.rounds[-1].get("evaluation") or {}


def score_of(line: Mapping[str, Any], metric: str, who: str) -> float | None:
    """The metric in one round, as ``curve`` gives it; None if it was not measured."""
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
