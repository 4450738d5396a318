"""``fedquilt predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedquilt.cli.screen import errors
from fedquilt.core.errors import RunError


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", help="The rows: a file, or another source as in data.source. For parties: PARTY=FILE each."
        ),
    ],
    file: Annotated[Path | None, typer.Option("--out", help="Write CSV, or JSON lines if it ends in .jsonl.")] = None,
    group: Annotated[str | None, typer.Option(help="Predict with the global model of this group (its label).")] = None,
    client: Annotated[int | None, typer.Option(help="Predict with this client's own model.")] = None,
    server: Annotated[bool, typer.Option("--server", help="Predict with the model that the server owns.")] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="A party of a vertical run that is missing. May be repeated.")
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="The column of ids by which parties' files have the same rows.")
    ] = None,
    superlink: Annotated[
        str | None,
        typer.Option("--superlink", help="Ask the parties of a vertical run on Flower. --input is the active one's."),
    ] = None,
) -> None:
    """Predict the rows of a file with a run's model.

    The rows are read as the run file says, without labels. The output has the number of each row, from 0, with the
    predicted class and its probability, or a language model's text. The parties of a vertical run predict together.
    Their rows are in one order, or found by --id; over Flower by the run's own alignment, if it has one.
    """
    from fedquilt.experiment.predict import predict as predicted
    from fedquilt.experiment.predictions import text_of, write_lines
    from fedquilt.record.read import remark_if_unfinished

    if remark := remark_if_unfinished(run):
        errors.print(f"note: {remark}", highlight=False, soft_wrap=True, markup=False)
    if superlink is not None:
        lines = _asked(run, inputs, superlink, without or (), client=client, group=group, server=server, id=id)
    else:
        lines = list(predicted(run, inputs, client, group, server=server, without=without or (), id=id).lines())
    if file is None:
        print(text_of(lines, as_json=False), end="")
        return
    write_lines(lines, file)
    errors.print(f"wrote {len(lines)} predictions to {file}", highlight=False, soft_wrap=True)


def _asked(
    run: Path, inputs: Sequence[str], superlink: str, without: Sequence[str], **others: Any
) -> list[dict[str, Any]]:
    """The predictions of a query; ``others`` are options that have no place beside it."""
    from fedquilt.experiment.flower_app import ask

    for name, value in others.items():
        if value is not None and value is not False:  # client 0 is one
            raise RunError(
                f"--{name}: has no effect with --superlink, where all parties predict, and find rows as in the run; "
                "leave it out"
            )
    return ask(run, inputs, superlink, without, lambda line: errors.print(line, highlight=False, soft_wrap=True))
