"""Several clients' local training at once: side by side where that can be done, and in turn where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedquilt.client.job import Job, alone
from fedquilt.client.stacked.kinds import alike, refusal
from fedquilt.client.stacked.training import trained_together
from fedquilt.client.stacked.trial import verdict_on
from fedquilt.core.errors import FedquiltError
from fedquilt.core.worker import Fitted


class Done(NamedTuple):
    """What came of one client's training, and why it was trained alone; empty if it was not."""

    outcome: Fitted | FedquiltError
    alone: str = ""


def fitted_together(jobs: Sequence[Job]) -> list[Done]:
    """The result of every job, in their order, and the reasons of those that were carried out alone.

    Results are those of ``job.alone``, up to the rounding of sums; so are failures.
    """
    found: dict[int, Done] = {}
    able = []
    for number, job in enumerate(jobs):
        if why := refusal(job) or verdict_on(job).refusal:
            found[number] = Done(_in_turn(job), why)
        else:
            able.append(number)
    for group in alike([jobs[number] for number in able]):
        numbers = [able[place] for place in group]
        if len(numbers) == 1:
            found[numbers[0]] = Done(_in_turn(jobs[numbers[0]]), "no other client can be trained beside it")
            continue
        own = [jobs[number] for number in numbers]
        outcomes = trained_together(own, drops=verdict_on(own[0]).drops)
        found |= {number: Done(outcome) for number, outcome in zip(numbers, outcomes, strict=True)}
    return [found[number] for number in range(len(jobs))]


def _in_turn(job: Job) -> Fitted | FedquiltError:
    try:
        return alone(job)
    except FedquiltError as error:
        return error
