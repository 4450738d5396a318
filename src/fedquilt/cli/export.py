"""``fedquilt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    folder: Annotated[Path, typer.Option("--out", help="The PEFT folder to write.")],
    client: Annotated[
        int | None, typer.Option(help="Export this client's own adapter instead of the global one.")
    ] = None,
) -> None:
    """Write a run's adapter in PEFT's folder format, which `PeftModel.from_pretrained` loads."""
    from fedquilt import experiment

    out.print(f"wrote {experiment.export(run, folder, client)}", highlight=False, soft_wrap=True)
