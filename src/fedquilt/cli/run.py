"""``fedquilt run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import Shown, out
from fedquilt.core.errors import ConfigError
from fedquilt.record import Record


def run(
    config: Annotated[Path | None, typer.Argument(help="The run file (TOML).")] = None,
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to set.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="The run's folder; OUTPUT/NAME of the run file if left out.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run one federation, or go on with a run that stopped."""
    from fedquilt.config.load import load

    if (config is None) == (resume is None):
        raise ConfigError("give a run file, as in `fedquilt run my.toml`, or a stopped run, as in `--resume runs/my`")
    place = resume
    try:
        settings = load(config, changes or [])[0] if config is not None else None
        if settings is not None:
            place = folder or Path(settings.output) / settings.name
            Record.refuse(place)
        from fedquilt import experiment  # takes seconds, so what is wrong with the words above is told first

        with Shown(quiet) as progress:
            if resume is not None:
                experiment.resume(resume, progress=progress)
            elif settings is not None and place is not None:
                experiment.run(settings, place, progress)
    except KeyboardInterrupt:
        _stopped(place)
    out.print(f"{place}: finished; see it with `fedquilt report {place}`", highlight=False, soft_wrap=True)


def _stopped(place: Path | None) -> None:
    """Say where the run can go on after Ctrl-C."""
    if place is None or not (place / "config.json").exists():
        text = "stopped before the run began; nothing was kept"
    else:
        text = f"stopped before the first round was finished; {place} holds no checkpoint yet"
        if Record.open(place).has_checkpoint:
            next_round = Record.open(place).load_checkpoint()[0]
            text = f"stopped; {place / 'checkpoint.json'} holds everything up to round {next_round - 1}"
        text += f"; go on with `fedquilt run --resume {place}`"
    out.print(text, highlight=False, soft_wrap=True)
    raise typer.Exit(130)
