"""``fedquilt export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedquilt.cli.screen import errors, out
from fedquilt.core.errors import ConfigError


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
    to: Annotated[
        Literal["peft", "merged", "card", "vllm"],
        typer.Option("--to", help="What to write: the adapter, the whole model, only the model card, or for vLLM."),
    ] = "peft",
    merged: Annotated[bool, typer.Option("--merged", help="The same as --to merged.")] = False,
) -> None:
    """Export a run's trained adapter as a folder, with a model card.

    LoRA adapters are written in PEFT's format, for `PeftModel.from_pretrained`; mixtures of adapters in fedquilt's own,
    for `fedquilt.load_adapter`; after full fine-tuning (`adapter.kind = "full"`) the folder holds the model. With
    `--to merged` it holds the model without adapters, for `from_pretrained`; a quantised base is dequantised for it.
    With `--to card` it holds only the model card: data, method, privacy, metrics, how to load and to reproduce it. With
    `--to vllm` it holds every adapter of the run, by group and client, and the command that serves them together.
    """
    if merged and to not in ("peft", "merged"):
        raise ConfigError(f"--merged: is the same as --to merged, and --to {to} is given; leave one of them out")
    from fedquilt.experiment.export_kinds import exported
    from fedquilt.record.read import remark_if_unfinished

    if remark := remark_if_unfinished(run):
        errors.print(f"note: {remark}", highlight=False, soft_wrap=True, markup=False)
    kind = "merged" if merged else to
    out.print(exported(run, folder, kind, client, group, server=server), highlight=False, soft_wrap=True)
