"""``fedquilt examples``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

import fedquilt
from fedquilt.cli.demo import words
from fedquilt.cli.screen import out
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.shell import command

EXAMPLES = {
    file.stem: file for file in sorted(Path(str(resources.files(fedquilt) / "assets" / "examples")).glob("*.toml"))
}
"""The run file of each example; the comment at its beginning says what it shows."""


def examples(
    name: Annotated[str | None, typer.Argument(help="The example to copy; all are listed if left out.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; NAME.toml if left out.")] = None,
) -> None:
    """List run files to start from, or copy one. They run as they are, and nothing is downloaded."""
    if name is None:
        for known, file in EXAMPLES.items():
            out.print(f"{known}\n  {' '.join(words(file).split())}\n", highlight=False, markup=False)
        out.print(f"Copy one: {command('examples', 'NAME')}", highlight=False, soft_wrap=True)
        return
    if name not in EXAMPLES:
        raise ConfigError(
            f"there is no example '{name}'{suggestion(name, list(EXAMPLES))}; allowed: {', '.join(EXAMPLES)}"
        )
    target = output or Path(f"{name}.toml")
    if target.exists():
        raise ConfigError(f"{target}: is there already; give another file with --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, EXAMPLES[name].read_bytes())
    out.print(
        f"{target}: written; next:\n  {command('check', target)}\n  {command('run', target)}",
        highlight=False,
        soft_wrap=True,
    )
