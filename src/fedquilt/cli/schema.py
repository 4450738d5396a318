"""``fedquilt schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import out
from fedquilt.core.disk import write_bytes


def schema(
    save: Annotated[Path | None, typer.Option("--out", help="The file to write; printed if left out.")] = None,
) -> None:
    """Print the JSON schema of run files, by which an editor completes and checks them."""
    from fedquilt.config.json_schema import json_schema
    from fedquilt.core.parties import VERTICAL
    from fedquilt.data.partition_schemes import SCHEMES
    from fedquilt.data.vertical.deal import Dealing
    from fedquilt.methods import METHODS

    text = json.dumps(json_schema(METHODS, {**SCHEMES, VERTICAL: Dealing}), indent=2) + "\n"
    if save is None:
        typer.echo(text, nl=False)
        return
    write_bytes(save, text.encode())
    out.print(f"{save}: name it in a run file's first line, `#:schema {save}`", highlight=False, soft_wrap=True)
