"""``fedquilt predict``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import errors
from fedquilt.core.disk import write_bytes
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
) -> None:
    """Predict the rows of a file with a run's model.

    The rows are read as the run file says, without labels. The output has the number of each row, from 0, with the
    predicted class and its probability, or a language model's text. The parties of a vertical run predict together.
    """
    from fedquilt.experiment.predict import predict as predicted

    lines = list(predicted(run, inputs, client, group, server=server, without=without or ()).lines())
    as_json = file is not None and file.suffix == ".jsonl"
    made = io.StringIO()
    if as_json:
        made.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    else:
        table = csv.DictWriter(made, [*lines[0]], lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    if file is None:
        print(made.getvalue(), end="")
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, made.getvalue().encode())
    except OSError as error:
        raise RunError(f"--out {file}: cannot be written ({error}); give another file") from error
    errors.print(f"wrote {len(lines)} predictions to {file}", highlight=False, soft_wrap=True)
