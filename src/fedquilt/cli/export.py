"""``fedquilt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    group: Annotated[str | None, typer.Option(help="Export the global adapter of this group (its label).")] = None,
    client: Annotated[
        int | None, typer.Option(help="Export this client's own adapter instead of the global one.")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="Export the adapter of the model that the server owns.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole model with the adapter merged into its weights.")
    ] = False,
) -> None:
    """Export a run's trained adapter as a folder.

    LoRA adapters are written in PEFT's format, for `PeftModel.from_pretrained`; mixtures of adapters in fedquilt's own,
    for `fedquilt.load_adapter`; after full fine-tuning (`adapter.kind = "full"`) the folder holds the model. With
    `--merged` it holds the model without adapters, for `from_pretrained`; a quantised base is dequantised for it.
    """
    from fedquilt.experiment.export import export as exported
    from fedquilt.experiment.merged_model import export_merged

    write = export_merged if merged else exported
    out.print(f"wrote {write(run, folder, client, group, server=server)}", highlight=False, soft_wrap=True)
