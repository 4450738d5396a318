"""``fedquilt report`` and ``fedquilt plot``, which read only run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.compare import REFERENCE, show
from fedquilt.cli.screen import errors, out
from fedquilt.record.read import run_folders
from fedquilt.report.runs import group_runs, read_run

RUNS = "Run folders, or folders that hold them."


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=RUNS)],
    last: Annotated[
        int | None,
        typer.Option(help="Average over this many last evaluated rounds; evaluation.last of each run if left out."),
    ] = None,
    reference: Annotated[list[str] | None, typer.Option(help=REFERENCE)] = None,
    save: Annotated[Path | None, typer.Option(help="Write the tables to this file as Markdown.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write tables and interactive charts as one self-contained HTML page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the results of runs as tables."""
    groups = group_runs([read_run(run) for run in run_folders(runs)])
    show(groups, last, reference or (), save, as_json)
    if html is not None:
        from fedquilt.report.page import write_page

        errors.print(f"wrote {write_page(groups, html, last, reference or ())}", highlight=False, soft_wrap=True)


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=RUNS)],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the plots.")] = Path("plots"),
) -> None:
    """Plot accuracy, communication, layers and classes per client."""
    from fedquilt.report.plot import save_plots  # imports matplotlib

    for path in save_plots(group_runs([read_run(run) for run in run_folders(runs)]), folder):
        out.print(str(path), highlight=False, soft_wrap=True)
