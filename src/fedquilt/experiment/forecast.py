"""The time that is left of a run: estimates from its optimiser steps, rounds and evaluations so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fedquilt.client.client import Client
from fedquilt.config.schema import Config
from fedquilt.core.evaluated import without_auto
from fedquilt.core.training import num_steps
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.round_due import is_due
from fedquilt.report.round_text import duration

SLOW = 600.0
"""Seconds of a round above which the user is told at once how to make it shorter."""

_SAMPLE = 500
"""Of more clients, the cost of an evaluation is estimated from about so many."""

_FORWARD = 1 / 3  # the forward pass takes about a third of an optimiser step on the same rows


class Work(NamedTuple):
    """What there is to do, from the first round that this process runs to the last.

    Attributes
    ----------
    rounds, evaluations
        Number of rounds, and of those that end with an evaluation.
    round_steps
        Optimiser steps of all clients in a round, on average over cohorts.
    evaluation_steps
        Expected cost of an evaluation in optimiser steps; used until one has been measured.
    closing_steps
        Expected cost of the evaluation of the final model on every client, where only they can do it.
    """

    rounds: int
    evaluations: int
    round_steps: float
    evaluation_steps: float
    closing_steps: float = 0.0


class Spent(NamedTuple):
    """What this process has done of it so far.

    Attributes
    ----------
    rounds, round_seconds
        Number of finished rounds, and the seconds of all of them without evaluations.
    evaluations, evaluation_seconds
        Number of evaluations, and the seconds of all of them.
    steps, step_seconds
        Optimiser steps of the unfinished round, and the mean seconds of a step.
    """

    rounds: int = 0
    round_seconds: float = 0.0
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    steps: float = 0.0
    step_seconds: float = 0.0


class Forecast(NamedTuple):
    """Estimated seconds.

    Attributes
    ----------
    left
        Until everything is done: all rounds and evaluations, the final one too, in a comparison of all ``runs``.
    round, evaluation
        Of one round without its evaluation, and of one evaluation.
    runs
        Number of runs that are not finished; 1 outside a comparison.
    """

    left: float
    round: float
    evaluation: float
    runs: int = 1


def forecast(work: Work, spent: Spent) -> Forecast:
    """The time that is left: what is still to do, each part at the mean of those already done.

    Until a round (an evaluation) is finished, its seconds are those of its optimiser steps.
    """
    round = spent.round_seconds / spent.rounds if spent.rounds else work.round_steps * spent.step_seconds
    evaluation = work.evaluation_steps * spent.step_seconds
    if spent.evaluations:
        evaluation = spent.evaluation_seconds / spent.evaluations
    begun = min(1.0, spent.steps / work.round_steps) if work.round_steps else 0.0
    rounds = max(0.0, work.rounds - spent.rounds - begun)
    left = rounds * round + (work.evaluations - spent.evaluations) * evaluation
    return Forecast(left + work.closing_steps * spent.step_seconds, round, evaluation)


def of_all(
    begun: Sequence[float], paces: Mapping[str, float], waiting: Sequence[tuple[str, int]], workers: int = 1
) -> float:
    """Seconds until all runs of a comparison are done.

    Parameters
    ----------
    begun
        Seconds left of each run that has begun.
    paces
        Seconds of a round with its share of evaluations, by the label of runs that have begun.
    waiting
        Label and number of rounds of each run that has not; a label without a pace gets the mean of the others.
    workers
        Number of runs in parallel.
    """
    mean = sum(paces.values()) / max(1, len(paces))
    left = [*begun, *(rounds * paces.get(label, mean) for label, rounds in waiting)]
    return max([sum(left) / workers, *left])


def work_of(experiment: Experiment, start: int) -> Work:
    """What a run has to do from round ``start`` on."""
    config, profiles = experiment.config, experiment.federation.profiles
    trainings = {group.label: group.server.training for group in experiment.groups}
    steps = sum(num_steps(profile.num_examples, trainings[profile.group]) for profile in profiles)
    ids = [*experiment.clients][:: -(-len(experiment.clients) // _SAMPLE) or 1]  # all, or some of many
    seen = _evaluation_steps(experiment.clients[id] for id in ids)
    clients = seen * len(experiment.clients) / max(1, len(ids))
    who, share = without_auto(config.evaluation.clients, len(profiles)), config.cohort / len(profiles)
    received = clients if who == "received" else 0.0  # part of the round
    after = clients if who is True else clients * share if who == "cohort" else 0.0
    owned, scoring = _servers_steps(experiment)
    return Work(
        rounds=config.rounds - start,
        evaluations=sum(is_due(config, number) for number in range(start, config.rounds)),
        round_steps=share * (steps + received) + owned,
        evaluation_steps=after + _evaluation_steps(group.server for group in experiment.groups) + scoring,
        closing_steps=clients if who == "received" else 0.0,
    )


def _servers_steps(experiment: Experiment) -> tuple[float, float]:
    """The cost of training and of evaluating the model that the server owns, in optimiser steps of a client.

    A step costs as much as its rows times the model's weights. What the server generates is not counted.
    """
    owner, profiles = experiment.owner, experiment.federation.profiles
    if owner is None:
        return 0.0, 0.0
    groups = {group.label: group for group in experiment.groups}
    usual = sum(_cost_of_step(groups[profile.group]) for profile in profiles) / len(profiles)
    steps = num_steps(owner.server.profile.num_examples, owner.server.training)
    beside = sum(experiment.method.beside.on_server(experiment.config.cohort))
    training = steps * _cost_of_step(owner, beside) / usual
    return training, _evaluation_steps([owner.server]) * _cost_of_step(owner) / usual


def _cost_of_step(group: BuiltGroup, beside: int = 0) -> float:
    training = group.server.training
    weights = sum(tensor.numel() for tensor in group.bench.model.parameters())
    return float(weights * (training.batch_size * training.accumulation + beside))


def _evaluation_steps(clients: Iterable[Client]) -> float:
    """The cost of evaluating all held-out rows of these clients, in optimiser steps."""
    total = 0.0
    for client in clients:
        of_step = client.training.batch_size * client.training.accumulation
        for columns in client.splits.values():
            rows = len(columns["labels"])
            tokens = float(columns["attention_mask"].sum()) if client.answering and rows else 0.0
            written = rows * client.answering.new_tokens if client.answering else 0
            # a generated token costs about as much as a token of the row
            total += rows / of_step * _FORWARD * (1 + written / max(1.0, tokens))
    return total


def slow_round(config: Config, seen: Forecast) -> str | None:
    """What to tell the user about rounds that take long, and how to make them shorter; None if they do not."""
    if seen.round + seen.evaluation < SLOW:
        return None
    amount = "steps" if config.training.epochs is None else "epochs"
    lower = f"training.{amount} = {getattr(config.training, amount)}, clients.cohort = {config.cohort}, data.limit"
    text = f"a round will take about {duration(seen.round)}, and each evaluation about {duration(seen.evaluation)}; "
    text += f"to make it shorter, lower {lower} or take a smaller model or a GPU"
    if seen.evaluation > seen.round / 4:
        text += f", lower evaluation.limit, or raise evaluation.every = {config.evaluation.every}"
    return text
