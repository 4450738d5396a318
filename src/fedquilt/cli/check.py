"""``fedquilt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out, show_json
from fedquilt.core.errors import ConfigError


def check(
    config: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to override.")] = None,
    partition: Annotated[
        int | None,
        typer.Option(help="With partition.scheme = 'sites': check only this client's data.source, as its site would."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report every problem of a run file, without training.

    No weights are loaded.
    """
    from fedquilt.experiment.check_all import check_all

    found = check_all(config, changes or [], None if partition is None else (partition,))
    problems, notes = found.problems, found.notes
    if as_json:
        show_json({"config": str(config), "problems": problems, "notes": notes})
        raise typer.Exit(1 if problems else 0)
    for note in notes:
        out.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    if problems:
        raise ConfigError(problems)
    out.print(f"{config}: no problem found", highlight=False, soft_wrap=True)
