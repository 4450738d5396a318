"""``fedquilt doctor``."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Any

import typer

from fedquilt.cli.screen import out, show_json, show_table
from fedquilt.core.shell import command


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what this machine offers, and any problem."""
    from fedquilt.core.errors import FedquiltError
    from fedquilt.core.rng import Rng
    from fedquilt.experiment.models import device_of
    from fedquilt.models.hf import load_model
    from fedquilt.record import environment

    problems: list[str] = []
    try:
        loaded = load_model("glyph-vit", "image-classification", num_classes=None, rng=Rng(0))
        model = f"{loaded.architecture}, loads"
    except FedquiltError as error:
        model = "does not load"
        problems.append(str(error))
    around = environment()
    free = shutil.disk_usage(".").free
    if free < 1e9:
        problems.append(f"only {free / 1e6:.0f} MB free in this folder; checkpoints may not fit")
    found: dict[str, Any] = {
        **{f"version of {name}": version for name, version in around["versions"].items()},
        "platform": around["platform"],
        "processors": f"{around['cpus']}, torch uses {around['threads']} threads",
        "device": str(device_of("auto")),
        "disk free here": f"{free / 1e9:.1f} GB",
        "bundled model": model,
        "FEDQUILT_DATA": os.environ.get("FEDQUILT_DATA", "not set (only the experiments on MNIST and SST-2 need it)"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
    }
    if as_json:
        show_json({**found, "problems": problems})
    else:
        show_table([["what", "found"], *([key, str(value)] for key, value in found.items())])
        for problem in problems:
            out.print(f"problem: {problem}", markup=False, highlight=False)
        if not problems:
            out.print(f"no problem found; try: {command('demo')}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if problems else 0)
