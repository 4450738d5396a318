"""``fedquilt new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out


def new(
    folder: Annotated[Path, typer.Argument(help="Folder of the app.")],
    config: Annotated[
        Path | None, typer.Option("--run-file", help="Run file of the app; a small example if left out.")
    ] = None,
) -> None:
    """Turn a run file into a Flower app, for `flwr run`."""
    from fedquilt.experiment.flower_app import RUN_FILE, write_app

    text = RUN_FILE
    if config is not None:
        from fedquilt.config.load import load

        load(config)  # says what is wrong with it
        text = config.read_text(encoding="utf-8")
    made = write_app(folder, text)
    out.print(
        f"{made}: written; edit it, then start it with `flwr run {folder} --stream`", highlight=False, soft_wrap=True
    )
