"""What students took of their teachers' paths: the numbers that a server and its clients tell about their choices.

Clients tell them as metrics of an exchange; the server's stand in the state of a round as ``client_<k>_<name>``, about
the paths of client k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedquilt.report.groups import SERVER
from fedquilt.report.runs import Run, as_number, client_names
from fedquilt.report.table import Groups, Row

NUMBERS = ("taken", "offered_right", "taken_right", "label_error", "label_correlation")
"""The share of the offered paths that was taken; the shares of right ones among the offered and among the taken; the
error and the correlation of the labels that the filter predicted, against those that training gave."""

LESSONS = "What students took of the paths of their teachers, means over rounds"
"""The heading of ``lesson_rows``."""

_TOLD = tuple(name for name in NUMBERS if name != "offered_right")
_OF_CLIENT = re.compile(r"client_(\d+)_taken")

Series = tuple[list[int], list[float]]
"""Rounds, and a number in each."""


class Pupil(NamedTuple):
    """A student with one teacher: who they are, by name, and the student's numbers over rounds, by ``NUMBERS``."""

    student: str
    teacher: str
    numbers: Mapping[str, Series]


def pupils(run: Run) -> list[Pupil]:
    """Return the students that told about their choices: each client, taught by the server, then the server by each."""
    names = client_names(run)
    found: dict[tuple[str, str], dict[str, Series]] = {}
    for line in run.rounds:
        for upward, client, numbers in sorted(_told(line), key=lambda one: one[:2]):
            name = f"client {names.get(client, client)}"
            pair = (SERVER, name) if upward else (name, SERVER)
            for number, value in numbers.items():
                rounds, values = found.setdefault(pair, {}).setdefault(number, ([], []))
                rounds.append(int(line["round"]))
                values.append(as_number(value))
    ordered = sorted(found, key=lambda pair: pair[0] == SERVER)  # stable: clients stay in the order in which they came
    return [Pupil(*pair, found[pair]) for pair in ordered]


def _told(line: Mapping[str, Any]) -> Iterator[tuple[bool, int, dict[str, Any]]]:
    """Yield what was told in a round: whether the server is the student, the client, and the numbers."""
    state = line.get("state") or {}
    for exchange in line.get("exchanges") or ():
        for client, sent in (exchange.get("clients") or {}).items():
            metrics = sent.get("metrics") or {}
            if "taken" in metrics:
                yield False, int(client), _numbers(metrics, state.get("server_right"))
    for key in state:
        if match := _OF_CLIENT.fullmatch(key):
            about = {name: state[own] for name in _TOLD if (own := f"client_{match[1]}_{name}") in state}
            yield True, int(match[1]), _numbers(about, state.get(f"client_{match[1]}_right"))


def _numbers(told: Mapping[str, Any], right: Any) -> dict[str, Any]:
    offered = {} if right is None else {"offered_right": right}
    return {**{name: told[name] for name in _TOLD if name in told}, **offered}


def lesson_rows(groups: Groups) -> list[Row]:
    """Return one row for each label and student: the means of its numbers over rounds and teachers, then over seeds.

    None stands for a number that was not told. Labels whose runs have no students have no rows.
    """
    rows: list[Row] = []
    for label, runs in groups.items():
        told = [pupils(run) for run in runs]
        for student in dict.fromkeys(pupil.student for one in told for pupil in one):
            own = [[pupil for pupil in one if pupil.student == student] for one in told]
            means = {name: [_mean(name, one) for one in own] for name in NUMBERS}
            known = {name: [value for value in values if value is not None] for name, values in means.items()}
            row: Row = {"label": label, "student": student, "seeds": sum(map(bool, own))}
            rows.append(row | {name: float(np.mean(values)) if values else None for name, values in known.items()})
    return rows


def _mean(name: str, of_student: list[Pupil]) -> float | None:
    values = [value for pupil in of_student for value in pupil.numbers.get(name, ([], []))[1]]
    return float(np.mean(values)) if values else None
