"""The model card of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedquilt.adapters.model_card import CARD, LABELS, card, is_own
from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import server_parts
from fedquilt.config.load import parse
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId
from fedquilt.experiment.base_of_run import part_of
from fedquilt.models.locate import whole_of
from fedquilt.record import read_config
from fedquilt.report.model_card import model_card, names_of_clients
from fedquilt.report.runs import read_run


def carded(
    run: Path,
    out: Path,
    adapter: Path,
    client: ClientId | None = None,
    group: str | None = None,
    *,
    server: bool = False,
    merged: bool = False,
) -> Path:
    """Write the model card of an export into its folder, unless a README.md of the user's is there; returns its path.

    Parameters
    ----------
    run
        The run's folder.
    out
        The folder of the export.
    adapter
        The folder of the adapter in the run, with its class names.
    client, group, server
        Whose model it is, as for ``export.export``.
    merged
        Whether the export is a whole model.

    Raises
    ------
    RunError
        if it cannot be written.
    """
    file = out / CARD
    if is_own(file):
        return file
    read, whole = read_run(run), parse(read_config(run))
    part = server_parts(whole)[0] if server else part_of(whole, client, group)
    task, kind = part.config.model.task, KINDS[part.config.adapter.kind]
    base, layers = whole_of(part.config.model.name)
    whose = "the server's model" if server else "the global model" + (f" of the group {group}" if group else "")
    if client is not None:
        whose = f"the model of client {names_of_clients(read)[client]}"
    as_peft = (adapter / "adapter_config.json").is_file() and not merged
    if merged or kind.trains_base:
        usage, library = _usage_of_model(task), "transformers"
    elif (adapter / CARD).is_file():
        usage, library = _body((adapter / CARD).read_text("utf-8")), "peft" if as_peft else "fedquilt"
    else:
        made = card(base, task, _classes(adapter), peft=as_peft, revision=part.config.model.revision, layers=layers)
        usage, library = _body(made), "peft" if as_peft else "fedquilt"
    text = model_card(read, whose, usage, base=base, task=task, library=library)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(file, text.encode())
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error}); choose another folder") from error
    return file


def _body(text: str) -> str:
    """What of a short card tells how the model is loaded."""
    return text.partition("# Adapter\n")[2].strip()


def _classes(adapter: Path) -> tuple[str, ...]:
    file = adapter / LABELS
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))["id2label"] if file.is_file() else {}
    return tuple(str(name) for name in found.values())


def _usage_of_model(task: str) -> str:
    name = TASKS[task].auto_class
    if TASKS[task].reads == "table":
        made = f'model = {name}.from_pretrained(".")  # this folder'
        return f"```python\nfrom fedquilt.models.mlp import {name}\n\n{made}\n```"
    reads = "AutoImageProcessor" if TASKS[task].reads == "image" else "AutoTokenizer"
    return (
        f"```python\nfrom transformers import {reads}, {name}\n\n"
        f'model = {name}.from_pretrained(".")  # this folder\n'
        f'inputs = {reads}.from_pretrained(".")\n```\n\n'
        "Its config has the names of the classes, where it has classes (`model.config.id2label`)."
    )
