"""``fedquilt new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out


def new(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    config: Annotated[Path | None, typer.Option("--run-file", help="A run file to put in; a small one else.")] = None,
) -> None:
    """Make a Flower app of a run file, for Flower's own `flwr run`."""
    from fedquilt.experiment.flower_app import RUN_FILE, write_app

    text = RUN_FILE
    if config is not None:
        from fedquilt.config.load import load

        load(config)  # says what is wrong with it
        text = config.read_text(encoding="utf-8")
    made = write_app(folder, text)
    out.print(f"{made}: change it as you like; then `flwr run {folder} --stream`", highlight=False, soft_wrap=True)
