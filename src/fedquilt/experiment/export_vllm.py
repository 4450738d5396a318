"""Export for vLLM's multi-LoRA: a folder for each adapter of a run, and the command that serves them on one base."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.lora.peft_files import PEFT_CONFIG, PEFT_TENSORS
from fedquilt.core.errors import RunError
from fedquilt.core.tasks import writing_task
from fedquilt.core.types import IN_MEMORY
from fedquilt.models.locate import find_source
from fedquilt.record import Record, read_config, read_partition, read_result
from fedquilt.record.folder import ADAPTERS
from fedquilt.report.model_card import names_of_clients
from fedquilt.report.runs import read_run

COMMAND = "serve.sh"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank


class Served(NamedTuple):
    """The folder, and the command that serves what is in it."""

    folder: Path
    command: str


def export_vllm(run: Path, out: Path, client: int | None = None, group: str | None = None) -> Served:
    """Write every adapter of a run as a folder that vLLM reads, with the command that serves them.

    These are the global adapter, or that of each group, and those of clients that have one of their own.

    Parameters
    ----------
    run, out
        The run's folder, and the folder to write, which must be new or empty.
    client, group
        Write only this client's adapter, or that of this group.

    Raises
    ------
    RunError
        if the run is unfinished, or vLLM cannot serve one of its adapters; says why.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"--out {out}: is not an empty folder; give a new one")
    record = Record.open(run)
    if read_result(run) is None:
        raise RunError(f"{run}: has not finished; --to vllm needs a finished run, let it finish with --resume")
    config = read_config(run)
    _refuse_task(run, config)
    folders = _adapters(run, client, group)
    bases = {}
    for name, folder in folders.items():
        record.has_adapter(folder.name)  # checks its files
        bases[name] = _refuse(folder)
    if len({base for base, _ in bases.values()}) > 1:
        raise RunError(f"{run}: its groups have different base models, and vLLM serves one; give --group")
    base = next(iter(bases.values()))[0]
    _, rank = max(bases.values(), key=lambda one: one[1])
    where = out.resolve()
    command = _command(base, {name: where / name for name in folders}, rank)

    def fill(fresh: Path) -> None:
        for name, folder in folders.items():
            (fresh / name).mkdir()
            for file in (PEFT_CONFIG, PEFT_TENSORS):
                shutil.copyfile(folder / file, fresh / name / file)
        (fresh / COMMAND).write_text(f"#!/bin/sh\nexec {command}\n", "utf-8")

    replace_folder(where, fill)
    return Served(out, command)


def _adapters(run: Path, client: int | None, group: str | None) -> dict[str, Path]:
    """The folders of the wanted adapters, by the names under which they are served."""
    names = names_of_clients(read_run(run))
    if client is not None and client not in names:
        raise RunError(f"--client {client}: {run} has the clients 0 to {len(names) - 1}")
    found: dict[str, Path] = {}
    for folder in sorted((run / ADAPTERS).iterdir()):
        kind, _, rest = folder.name.partition("-")
        if kind == "global" and client is None and group in (None, rest):
            found[_unused(rest or "global", found)] = folder
        elif kind == "client" and (client == int(rest) or (client is None and group in (None, _group(run, int(rest))))):
            name = names[int(rest)]
            found[_unused(f"client-{name}" if name.isdecimal() else name, found)] = folder
    if not found:
        raise RunError(f"{run}: has no such adapter; its adapters are {', '.join(_there(run))}")
    return found


def _there(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / ADAPTERS).iterdir())


def _group(run: Path, client: int) -> str:
    clients: Any = read_partition(run)["clients"]
    return str(clients[client].get("group", ""))


def _unused(name: str, taken: dict[str, Path]) -> str:
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "adapter"
    while plain in taken or plain == COMMAND:
        plain += "-again"
    return plain


def _refuse_task(run: Path, config: dict[str, Any]) -> None:
    parts = [config, *(config.get("groups") or ())]
    tasks = {task for part in parts if (task := (part.get("model") or {}).get("task"))}
    if other := sorted(tasks - {writing_task()}):
        raise RunError(
            f"--to vllm: {run} fine-tunes a model for {other[0]}, and vLLM's multi-LoRA serves language models; "
            "export with --to peft or --to merged"
        )


def _refuse(folder: Path) -> tuple[str, int]:
    """The base and the rank of an adapter, after a check that vLLM can serve it."""
    if not (folder / PEFT_CONFIG).is_file():
        raise RunError(f"--to vllm: {folder.name} is no LoRA adapter in PEFT's format, and vLLM serves only these")
    config = json.loads((folder / PEFT_CONFIG).read_text("utf-8"))
    name = str(config.get("base_model_name_or_path"))
    reasons = {
        "it uses DoRA (adapter.use_dora)": config.get("use_dora"),
        "it has trained biases": config.get("lora_bias") or config.get("bias") not in (None, "none"),
        "it has modules that are saved whole (a head, or a base cut to its first blocks)": config.get(
            "modules_to_save"
        ),
        "its modules have different ranks or scales (rank_pattern, alpha_pattern)": (
            config.get("rank_pattern") or config.get("alpha_pattern")
        ),
        f"its base '{name}' is an object of a program, or random, and no model that vLLM can load": (
            name.startswith((IN_MEMORY, "tiny:"))
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise RunError(f"--to vllm: vLLM cannot serve {folder.name}: {reason}; export with --to merged")
    source = find_source(name, meta=True, max_length=1)
    base = name if source.on_hub or source.location is None else str(Path(source.location).resolve())
    return base, int(config["r"])


def _command(base: str, adapters: dict[str, Path], rank: int) -> str:
    allowed = next((one for one in _RANKS if one >= rank), rank)
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(allowed), "--max-loras", str(len(adapters))]
    return shlex.join([*words, "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())])
