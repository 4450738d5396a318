"""Starting a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedquilt.api.progress import Watcher, progress_of
from fedquilt.api.run import Run
from fedquilt.api.settings import ConfigLike, settled
from fedquilt.core.errors import ConfigError, suggestion

ENGINES = ("embedded", "flower-sim")


def run(
    config: ConfigLike = None,
    *,
    folder: str | Path | None = None,
    label: str | None = None,
    progress: Watcher = None,
    engine: str = "embedded",
    **sections: Any,
) -> Run:
    """Run one federation to its end and return the run.

    Parameters
    ----------
    config
        A dictionary with the sections of a run file, a ``Config``, the path of a run file, or nothing.
    folder
        The run's folder, which must be new or empty; by default ``OUTPUT/NAME`` of the config, with a number appended
        if that folder exists.
    label
        The name of the run in tables and plots; its method if left out.
    progress
        Nothing is shown by default. True prints a line for each round; a function is called with the record of each
        round, in which ``"seconds_left"`` is an estimate; an object with methods of ``experiment.Progress`` receives
        those reports: clients, steps, forecasts.
    engine
        ``"embedded"`` runs all clients in this process, ``"flower-sim"`` on Flower's simulation engine.
    sections
        Sections and keys of a run file that override those of ``config`` key by key, as ``key=value`` does on the
        command line: ``rounds=3, training={"steps": 2}``. Text in place of a section sets its main key:
        ``model="glyph-vit"`` the name, ``data="rows.csv"`` the source, ``method="fedit"`` the name,
        ``partition="dirichlet"`` the scheme. ``task`` sets ``model.task``. ``model`` may also be an ``nn.Module`` or an
        ``OwnModel``, with a ``tokenizer`` beside it; ``data`` may be a dictionary of arrays, a pandas frame or a
        ``datasets.Dataset``, or a pair (train, test) of these. ``server`` is a dictionary of sections: its ``model``,
        ``data`` and ``private`` may be objects too.

    Raises
    ------
    ConfigError
        with every problem of the config.
    FedquiltError
        DataError, ModelError or RoundError if the data or the model cannot be used, or the run fails.
    """
    if engine not in ENGINES:
        raise ConfigError(
            f"engine = {engine!r}: no such engine{suggestion(str(engine), ENGINES)}; allowed: {', '.join(ENGINES)}"
        )
    if engine == "flower-sim" and label is not None:
        raise ConfigError(f"label = {label!r}: runs with engine = 'flower-sim' have no label; leave it out")
    settings = settled(config, sections)
    if engine != "embedded" and settings.objects:
        raise ConfigError(
            f"engine = {engine!r}: its clients are other processes, which cannot see '{min(settings.objects)}'; use "
            "engine = 'embedded', or save the model and the rows to files and give their paths"
        )
    target = _free(Path(settings.output) / settings.name) if folder is None else Path(folder)
    if engine == "flower-sim":
        from fedquilt.experiment.flower import simulate

        return Run(simulate(settings, target, progress_of(progress)))
    from fedquilt.experiment.run import run as embedded

    return Run(embedded(settings, target, progress_of(progress), label=label), settings.objects)


def _free(target: Path) -> Path:
    """The folder, or the first free one with a number appended."""
    number, free = 1, target
    while free.exists() and any(free.iterdir()):
        number += 1
        free = target.with_name(f"{target.name}-{number}")
    return free
