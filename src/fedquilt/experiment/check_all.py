"""Finding all problems of a run file and of each entry of its comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fedquilt.config.load import Overrides, RunFile, base_of, examine
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import ClientId
from fedquilt.experiment.check import check, method_problems


class Checked(NamedTuple):
    """Problems, and remarks that are no problems."""

    problems: list[str]
    notes: list[str]


def check_all(
    source: RunFile,
    overrides: Overrides = (),
    here: Collection[ClientId] | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> Checked:
    """All problems of a run file or its tables, without loading weights or training.

    ``here`` are the clients whose own rows are on this machine, None for all. ``objects`` are ``Config.objects``.
    """
    try:
        problems, made = examine(source, overrides)
        base = base_of(source, overrides)
    except ConfigError as error:
        return Checked(list(error.problems), [])
    if base is not None:  # the entries of [[compare]] may replace the method and so hide its problems
        problems += [problem for problem in method_problems(base) if problem not in problems]
    known: dict[Any, Any] = {}
    notes: list[str] = []
    found = {label: check(one.with_objects(objects), known, here, notes) for label, one in made}
    for label, texts in found.items():
        for text in texts:
            everywhere = all(text in others for others in found.values())
            said = text if everywhere else f"compare '{label}': {text}"
            # after the first ';' comes advice, which may differ between the checks of the file and of the data
            if not any(problem.startswith(said.partition(";")[0]) for problem in problems):
                problems.append(said)
    return Checked(problems, list(dict.fromkeys(notes)))
