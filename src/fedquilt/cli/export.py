"""``fedquilt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    group: Annotated[str | None, typer.Option(help="The group whose global adapter is exported, by its label.")] = None,
    client: Annotated[
        int | None, typer.Option(help="Export this client's own adapter instead of the global one.")
    ] = None,
) -> None:
    """Write a run's adapter as a folder: PEFT's, which `PeftModel.from_pretrained` loads, or a mixture's own.

    The latter is read by `fedquilt.load_adapter`. Where the weights were trained (`adapter.kind = "full"`), the folder
    holds the model.
    """
    from fedquilt.experiment.export import export as exported

    out.print(f"wrote {exported(run, folder, client, group)}", highlight=False, soft_wrap=True)
