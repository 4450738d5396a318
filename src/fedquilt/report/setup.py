"""What was run: facts from the config of each label, and the commands that run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedquilt.report.run_file import run_file
from fedquilt.report.runs import Run, client_table
from fedquilt.report.table import Groups, short_names

_MOST = 6  # values of a fact that are listed


class Command(NamedTuple):
    """A command, and the name and text of the run file that it reads."""

    command: str
    file: str
    text: str


def commands(groups: Groups) -> Iterator[Command]:
    """Yield a command for each run; those of a label share the run file of the first and differ in the seed."""
    names = short_names(groups)
    for label, runs in groups.items():
        file, text = f"{names[label]}.toml", run_file(runs[0].config) if runs else ""
        for run in runs:
            seed = [] if run.seed == runs[0].seed else [f"seed={run.seed}"]
            words = ["fedquilt", "run", file, *seed, "--folder", f"again/{names[label]}-seed{run.seed}"]
            yield Command(shlex.join(words), file, text)


def facts(groups: Groups) -> dict[str, str]:
    """Return what was run, by the name of the fact: what differs between labels is listed."""
    runs = [run for members in groups.values() for run in members]
    found = {
        "experiment": _several([run.name for run in runs]),
        "method": _several([run.method for run in runs]),
        "model": _several([name for run in runs for name in _models(run.config)]),
        "task": _several([str(_at(run, "model", "task")) for run in runs]),
        "data": _several([str(_at(run, "data", "source")) for run in runs]),
        "partition": _several([_partition(run.config.get("partition") or {}) for run in runs]),
        "clients": _several([_clients(run) for run in runs]),
        "adapter": _several([_adapter(run.config.get("adapter") or {}) for run in runs]),
        "rounds": _several([f"{len(run.rounds)} of {run.config.get('rounds', len(run.rounds))}" for run in runs]),
        "seeds": _several([str(run.seed) for run in runs], 12),
        "engine": _several([str(run.environment.get("engine") or "-") for run in runs]),
        "device": _several([str(run.environment.get("device") or "-") for run in runs]),
        "software": _several([_software(run) for run in runs], 2),
        "started": _several([str(run.environment.get("time") or "-") for run in runs], 1),
    }
    return {name: value for name, value in found.items() if value not in ("", "-", "None")}


def _several(values: Sequence[str], most: int = _MOST) -> str:
    different = [*dict.fromkeys(value for value in values if value not in ("", "None"))]
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return ", ".join(different[:most]) + more


def _at(run: Run, *keys: str) -> Any:
    found: Any = run.config
    for key in keys:
        found = (found or {}).get(key)
    return found


def _models(config: Mapping[str, Any]) -> list[str]:
    """The names of the models: of each group where there are groups, and of the server's own."""
    groups = [(group.get("model") or {}).get("name") for group in (config.get("groups") or config.get("parties") or ())]
    own = [name for name in groups if name] or [(config.get("model") or {}).get("name")]
    server = ((config.get("server") or {}).get("model") or {}).get("name")
    return [str(name) for name in own if name] + ([f"{server} (the server's)"] if server else [])


def _partition(section: Mapping[str, Any]) -> str:
    more = [f"{key} {section[key]}" for key in ("alpha", "classes_per_client") if section.get(key) is not None]
    return ", ".join([str(section["scheme"]), *more]) if section.get("scheme") else ""


def _clients(run: Run) -> str:
    cohort = _at(run, "clients", "cohort")
    return f"{len(client_table(run)):,}" + (f", {cohort} in a round" if cohort is not None else "")


def _adapter(section: Mapping[str, Any]) -> str:
    rank = [f"rank {section['rank']}"] if section.get("rank") is not None else []
    return ", ".join([str(section["kind"]), *rank]) if section.get("kind") else ", ".join(rank)


def _software(run: Run) -> str:
    versions = run.environment.get("versions") or {}
    return " ".join(f"{name} {versions[name]}" for name in ("fedquilt", "torch", "transformers") if name in versions)
