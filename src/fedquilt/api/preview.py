"""Checks and plans of a config before training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fedquilt.api.rows import Rows
from fedquilt.api.settings import ConfigLike, asked, settled
from fedquilt.report.table import human_bytes

_SHOWN = {
    "client": "client",
    "group": "group",
    "budget": "budget",
    "layers": "layers trained",
    "trained_parameters": "parameters",
    "bytes_down": "down",
    "bytes_up": "up",
    "peak_bytes": "peak memory",
}


def check(config: ConfigLike = None, **sections: Any) -> list[str]:
    """Return every problem of a config, found without loading weights or training.

    ``config`` and ``sections`` are those of ``run``. The list is empty if there is no problem; problems raise no
    exception.
    """
    from fedquilt.experiment.check_all import check_all

    wanted = asked(config, sections)
    return check_all(wanted.source, wanted.sections, objects=wanted.objects).problems


def plan(config: ConfigLike = None, **sections: Any) -> Rows:
    """Return the planned cost of a round for each client: layers, parameters, bytes each way and memory.

    ``config`` and ``sections`` are those of ``run``. No weights are loaded. Each row has the fields of
    ``experiment.plan.ClientPlan``, with ``peak_bytes``, the estimated memory, and ``saving``, the fraction of the
    communication cost that is saved compared with sending the whole model. If the server owns a model, the last row is
    about training it: its ``client`` is ``"server"``, and it has the fields of ``experiment.plan.ServerPlan``.

    Raises
    ------
    ConfigError
        with every problem of the config.
    """
    settings = settled(config, sections)
    from fedquilt.experiment.plan import whole_plan

    clients, server = whole_plan(settings)
    rows = [asdict(one) | {"peak_bytes": one.peak_bytes, "saving": one.saving} for one in clients]
    rows += [] if server is None else [{"client": "server", **asdict(server), "peak_bytes": server.peak_bytes}]
    shown = [key for key in _SHOWN if key != "group" or any(row.get("group") for row in rows)]
    return Rows(rows, [[_SHOWN[key] for key in shown], *([_text(key, row.get(key)) for key in shown] for row in rows)])


def _text(key: str, value: Any) -> str:
    if value is None or isinstance(value, str):  # what a row has nothing of, and names
        return value or ""
    if key.endswith(("bytes", "bytes_up", "bytes_down")):
        return human_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"
