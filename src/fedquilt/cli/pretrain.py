"""``fedquilt pretrain``: recipes that pretrain the bundled base models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.help_text import Command
from fedquilt.cli.screen import out, step_bar

app = typer.Typer(help="Pretrain a small base model on generated data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _frame() -> None:
    """Pretrain a small base model on generated data."""


@app.command(cls=Command)
def glyphs(
    folder: Annotated[Path, typer.Option("--out", help="Folder to write the model to.")],
    size: Annotated[str, typer.Option(help="Number of blocks x width: 4x32, 8x48 or 12x64.")] = "12x64",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")] = "cpu",
) -> None:
    """Pretrain a small vision transformer on letters and symbols drawn from several fonts."""
    from fedquilt.core.rng import Rng
    from fedquilt.experiment.models import device_of
    from fedquilt.pretrain.glyphs import pretrain_glyphs

    chosen = str(device_of(device))
    with step_bar("pretraining") as progress:
        made = pretrain_glyphs(folder, rng=Rng(seed), size=size, steps=steps, device=chosen, progress=progress)
    out.print(
        f"{made.folder}: accuracy {made.accuracy_new_fonts:.1%} on held-out fonts, "
        f"{made.accuracy_new_drawings:.1%} on held-out drawings, {made.seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


@app.command(cls=Command)
def arithmetic(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder to write to; each model gets a folder of its own in it.")
    ],
    only: Annotated[
        str | None,
        typer.Option(help="Pretrain only llama, gemma, qwen or llama-12x112 (larger); the first three if left out."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; 800 for llama-12x112, else 2500.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")] = "cpu",
) -> None:
    """Pretrain small causal language models of different architectures on generated arithmetic text."""
    from fedquilt.core.errors import ConfigError, suggestion
    from fedquilt.core.rng import Rng
    from fedquilt.experiment.models import device_of
    from fedquilt.pretrain.arithmetic import pretrain_arithmetic
    from fedquilt.pretrain.arithmetic_models import FAMILIES, SHAPES
    from fedquilt.pretrain.recipe import empty_folder

    if only is not None and only not in SHAPES:
        raise ConfigError(f"--only is '{only}'{suggestion(only, list(SHAPES))}; allowed: {', '.join(SHAPES)}")
    chosen = str(device_of(device))
    targets = {name: folder / f"arith-{name}" for name in ([only] if only else FAMILIES)}
    for taken in targets.values():
        empty_folder(taken)  # all of them before the first one trains
    for name, target in targets.items():
        with step_bar(name) as progress:
            made = pretrain_arithmetic(name, target, rng=Rng(seed), steps=steps, device=chosen, progress=progress)
        sums = ", ".join(f"{kind} {share:.0%}" for kind, share in made.new.items())
        out.print(
            f"{made.folder}: {made.num_weights:,} weights, loss {made.fresh_loss:.3f} on held-out text; "
            f"accuracy of sums with held-out numbers: {sums}; {made.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
