"""``fedquilt check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedquilt.cli.screen import out, show_json
from fedquilt.core.errors import ConfigError


def check(
    config: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to override.")] = None,
    partition: Annotated[
        int | None,
        typer.Option(help="With partition.scheme = 'sites': check only this client's data.source, as its site would."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report every problem of a run file, without training.

    No weights are loaded.
    """
    from fedquilt.config.load import base_of, examine
    from fedquilt.experiment.check import check as checked
    from fedquilt.experiment.check import method_problems

    try:
        problems, made = examine(config, changes or [])
        base = base_of(config, changes or [])
    except ConfigError as error:
        problems, made, base = list(error.problems), [], None
    if base is not None:  # what the entries of [[compare]] have in its place hides it from them
        problems += [problem for problem in method_problems(base) if problem not in problems]
    known: dict[Any, Any] = {}
    notes: list[str] = []
    here = None if partition is None else (partition,)
    found = {label: checked(one, known, here, notes) for label, one in made}
    notes = list(dict.fromkeys(notes))
    for label, texts in found.items():
        for text in texts:
            everywhere = all(text in others for others in found.values())
            said = text if everywhere else f"compare '{label}': {text}"
            # what ends the first sentence is advice, which the reader of the file and the reader of the data word apart
            if not any(problem.startswith(said.partition(";")[0]) for problem in problems):
                problems.append(said)
    if as_json:
        show_json({"config": str(config), "problems": problems, "notes": notes})
        raise typer.Exit(1 if problems else 0)
    for note in notes:
        out.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    if problems:
        raise ConfigError(problems)
    out.print(f"{config}: no problem found", highlight=False, soft_wrap=True)
