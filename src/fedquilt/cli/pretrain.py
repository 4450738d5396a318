"""``fedquilt pretrain``: base models that are made, not downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out, step_bar

app = typer.Typer(help="Make a base model from generated data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _frame() -> None:
    """Make a base model from generated data."""


@app.command()
def glyphs(
    folder: Annotated[Path, typer.Option("--out", help="The folder to write the model to.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 5000,
    seed: Annotated[int, typer.Option(help="Where all randomness starts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "cpu",
) -> None:
    """Pretrain the small vision transformer of the demo on letters and symbols drawn from several fonts."""
    from fedquilt.core.rng import Rng
    from fedquilt.experiment.build import device_of
    from fedquilt.pretrain import pretrain_glyphs

    with step_bar("pretraining") as progress:
        made = pretrain_glyphs(folder, rng=Rng(seed), steps=steps, device=str(device_of(device)), progress=progress)
    out.print(
        f"{made.folder}: {made.accuracy_new_fonts:.1%} of glyphs from fonts it never saw, "
        f"{made.accuracy_new_drawings:.1%} of new drawings, {made.seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
