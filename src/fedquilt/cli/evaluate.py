"""``fedquilt evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedquilt.cli.screen import errors, show_table
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import ConfigError, RunError


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="A run folder, or one that export wrote.")],
    source: Annotated[
        str | None, typer.Option("--input", help="The labelled rows: a file, or another source as in data.source.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks of lm-eval, separated by commas, for language models.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option("--include", help="A folder with the YAML files of lm-eval tasks of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each lm-eval task at most.")] = None,
    group: Annotated[str | None, typer.Option(help="The global model of this group (its label).")] = None,
    client: Annotated[int | None, typer.Option(help="This client's own model instead of the global one.")] = None,
    server: Annotated[bool, typer.Option("--server", help="The model that the server owns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: Annotated[Path | None, typer.Option("--out", help="Write the scores as JSON.")] = None,
) -> None:
    """Score a trained model on labelled rows, or a language model on benchmarks.

    With `--input`, rows are read and scored as in the run: loss and accuracy. With `--tasks`, EleutherAI's lm-eval
    scores a language model with its adapter merged.
    """
    if (source is None) == (tasks is None):
        raise ConfigError("evaluate: give either --input FILE or --tasks NAME,...")
    found: dict[str, dict[str, float]]
    if tasks is None:
        if include is not None or limit is not None:
            raise ConfigError("--include and --limit: go with --tasks; leave them out")
        from fedquilt.experiment.evaluate import evaluate as evaluated

        found = {str(source): evaluated(target, str(source), client, group, server=server)}
    else:
        if server:
            raise ConfigError("--server: has no effect with --tasks; export the server's model and evaluate that")
        from fedquilt.experiment.benchmarks import benchmark

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        found = benchmark(target, names, client, group, include=include, limit=limit)
    text = json.dumps({"model": str(target), "client": client, "group": group, "scores": found}, indent=2)
    if file is not None:
        _write(file, text)
    if as_json:
        print(text)
        return
    metrics = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = [[name, *(_shown(metric, own.get(metric)) for metric in metrics)] for name, own in found.items()]
    show_table([["rows", *metrics], *rows])


def _shown(metric: str, value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:,.0f}" if metric == "examples" else f"{value:.4g}"
    )


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, f"{text}\n".encode())
    except OSError as error:
        raise RunError(f"--out {file}: cannot be written ({error.strerror or error}); give another file") from error
    errors.print(f"wrote {file}", highlight=False, soft_wrap=True)
