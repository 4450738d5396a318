"""``fedquilt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out, show_json
from fedquilt.core.errors import ConfigError


def check(
    config: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find every problem of a run file without loading weights or training."""
    from fedquilt import experiment
    from fedquilt.config.load import load, parse, variants

    try:
        _, raw = load(config, changes or [])
        problems: list[str] = []
        for _, variant in variants(raw):
            problems += [problem for problem in experiment.check(parse(variant)) if problem not in problems]
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        show_json({"config": str(config), "problems": problems})
        raise typer.Exit(1 if problems else 0)
    if problems:
        raise ConfigError(problems)
    out.print(f"{config}: no problem found", highlight=False, soft_wrap=True)
