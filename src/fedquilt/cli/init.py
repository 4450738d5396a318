"""``fedquilt init``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedquilt.cli.screen import errors, out
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.shell import command

if TYPE_CHECKING:
    from fedquilt.experiment.draft import Wanted


def init(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="CSV, parquet, JSONL or xlsx file, image folder or saved dataset."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task; guessed from the columns if left out.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the class.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    site: Annotated[str | None, typer.Option(help="Column that says whose rows they are: a client for each.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, as model.name of a run file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run file to write; named after FILE if left out.")] = None,
) -> None:
    """Look at data and write a run file for it.

    On a terminal it asks for what is left out; elsewhere it is guessed from the columns.
    """
    from fedquilt.experiment.draft import Wanted, draft

    asks = on_a_terminal()
    if file is None and not asks:
        raise ConfigError(f"init: needs the file or folder of the data, as in: {command('init', 'rows.csv')}")
    file = file or typer.prompt("File or folder of the data")
    target = output or Path(f"{Path(file.partition(':')[2] or file).name.partition('.')[0] or 'run'}.toml")
    if target.exists():
        raise ConfigError(f"{target}: is there already; give another file with --output")
    wanted = Wanted(task, label, text, site, model)
    made = draft(file, _asked(file, wanted) if asks else wanted, target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, made.text.encode())
    except OSError as error:
        raise RunError(
            f"{target}: cannot be written ({error.strerror or error}); give another file with --output"
        ) from error
    for remark in made.seen.remarks():
        out.print(f"note: {remark}", highlight=False, soft_wrap=True, markup=False)
    out.print(
        f"{target}: written, for {made.task} ({made.seen.roles()}); next:\n"
        f"  {command('check', target)}\n  {command('compare', target)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def on_a_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and errors.is_terminal


def _asked(file: str, wanted: Wanted) -> Wanted:
    """What is known after asking for what is left out, with guesses as the defaults."""
    from fedquilt.core.tasks import TASKS
    from fedquilt.data.look import look
    from fedquilt.experiment.draft import MODELS, Wanted, task_of

    seen = look(file, label=wanted.label, text=wanted.text, site=wanted.site)
    errors.print(f"{seen.num_rows} rows with the columns {', '.join(seen.columns)}", markup=False, highlight=False)
    task = wanted.task or typer.prompt("Task", default=task_of(seen), type=click.Choice([*TASKS]))
    about, text, label = TASKS[task], wanted.text, wanted.label
    if about.reads == "text" and text is None:
        text = typer.prompt("Column of the text", default=seen.text or "")
    if about.has_classes and label is None:
        label = typer.prompt("Column of the class", default=seen.label or "")
    site = wanted.site
    if site is None:
        site = typer.prompt("Column that says whose rows they are (- for none)", default=seen.site or "-")
    usual, _ = MODELS["completion" if about.writes else about.reads]
    model = wanted.model or typer.prompt("Model", default=usual)
    return Wanted(task, label, text, "" if site == "-" else site, model)
