"""Benchmarks of language models by EleutherAI's lm-evaluation-harness, on a run's model with its adapter merged."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.shell import command, install_extra
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId
from fedquilt.experiment.base_of_run import part_of
from fedquilt.experiment.evaluate import ABOUT
from fedquilt.experiment.merged_model import export_merged
from fedquilt.experiment.models import device_of
from fedquilt.record import read_config
from fedquilt.record.read import is_run


def benchmark(
    target: Path,
    tasks: Sequence[str],
    client: ClientId | None = None,
    group: str | None = None,
    *,
    include: Path | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Return the harness's metrics by task.

    Parameters
    ----------
    target
        The folder of a run, or of a whole model that ``export --to merged`` wrote.
    tasks
        The names of the harness's tasks.
    client, group
        Whose model of a run; None for the global one.
    include
        A folder with the YAML files of tasks of one's own.
    limit
        The largest number of rows of each task; None for all.

    Raises
    ------
    FedquiltError
        ConfigError if the harness is not installed or has no such task, RunError if the model is no language model,
        ModelError if it cannot be merged.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(f"--tasks: needs lm-eval; install it with `{install_extra('evaluate')}`")
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include {include}: there is no such folder")
    if (target / ABOUT).is_file() or not is_run(target):
        if not (target / "config.json").is_file() or client is not None or group is not None:
            raise RunError(
                f"{target}: --tasks needs a run folder, or without --client and --group a whole model, as written by: "
                f"{command('export', 'RUN', '--to', 'merged', '--out', 'FOLDER')}"
            )
        return _scores(target, tasks, include, limit, "auto")
    part = part_of(_parsed(target), client, group)
    if not TASKS[part.config.model.task].writes:
        raise RunError(f"{target}: --tasks is for language models, and this one is for {part.config.model.task}")
    with tempfile.TemporaryDirectory(prefix="fedquilt-") as made:
        merged = export_merged(target, Path(made) / "model", client, group)
        return _scores(merged, tasks, include, limit, part.config.device)


def _parsed(run: Path) -> Any:
    from fedquilt.config.load import parse

    return parse(read_config(run))


def _scores(
    folder: Path, tasks: Sequence[str], include: Path | None, limit: int | None, device: str
) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise ConfigError(
            f"--tasks {','.join(unknown)}: lm-eval has no such task; `lm-eval ls tasks` lists them, and --include "
            "names a folder with YAML files of your own"
        )
    model = HFLM(pretrained=str(folder), dtype="auto", device=str(device_of(device)), batch_size=8)
    found: Any = simple_evaluate(model=model, tasks=[*tasks], task_manager=manager, limit=limit, log_samples=False)
    return {
        task: {name.partition(",")[0]: float(value) for name, value in own.items() if _is_score(name, value)}
        for task, own in found["results"].items()
    }


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and "stderr" not in name
