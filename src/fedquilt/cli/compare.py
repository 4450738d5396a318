"""``fedquilt compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import Shown, errors, out, terminal_width
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import ConfigError
from fedquilt.core.shell import command
from fedquilt.report.comparison import comparison
from fedquilt.report.groups import group_rows
from fedquilt.report.runs import Run, read_run
from fedquilt.report.table import as_json as rows_json
from fedquilt.report.table import compare_rows

REFERENCE = (
    "Label of the reference: runs are compared with it seed by seed. May be repeated; each run is compared with the "
    "first reference that has the same data partition."
)


def compare(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG... [KEY=VALUE...]", help="Run files, and keys to override.")
    ],
    workers: Annotated[int, typer.Option(help="Number of runs in parallel, each in its own process.")] = 1,
    reference: Annotated[list[str] | None, typer.Option(help=REFERENCE)] = None,
    save: Annotated[Path | None, typer.Option(help="Write the tables to this file as Markdown.")] = None,
    plots: Annotated[bool, typer.Option(help="Write plots and one HTML page beside the runs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the methods of one or more run files and compare them.

    All methods meet the same data partitions, cohorts and seeds. Runs that are already there are not repeated.
    """
    from fedquilt.experiment.compare import Job
    from fedquilt.experiment.compare import compare as run_all
    from fedquilt.experiment.compare import jobs as jobs_of

    files = [Path(item) for item in configs if "=" not in item]
    changes = [item for item in configs if "=" in item]
    if not files:
        raise ConfigError(f"give at least one run file, as in: {command('compare', 'my.toml')}")
    jobs = [job for file in files for job in jobs_of(file, changes)]
    if len(files) > 1:  # the same method in two files is not the same line of the table
        jobs = [replace(job, label=f"{job.config.name}: {job.label}") for job in jobs]

    try:
        with Shown() as progress:

            def announce(job: Job, number: int, of: int) -> None:
                progress.say(f"[{number}/{of}] {job.label}, seed {job.seed}: {job.folder}")

            folders = run_all(jobs, workers=workers, progress=progress, on_done=announce)
    except KeyboardInterrupt:
        out.print(
            "stopped; finished rounds are kept, and the same command continues from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    groups = {label: [read_run(folder) for folder in places] for label, places in folders.items()}
    show(groups, None, reference or (), save, as_json)
    if plots:
        from fedquilt.report.page import write_page
        from fedquilt.report.plot import save_plots

        folder = jobs[0].folder.parent
        drawn = save_plots(groups, folder / "plots")
        page = write_page(groups, folder / "report.html", references=reference or ())
        errors.print(f"{len(drawn)} plots in {folder / 'plots'}, one page in {page}", highlight=False, soft_wrap=True)
    if as_json:  # for a program, which needs no next step
        return
    first = jobs[0].folder
    errors.print(
        f"next:\n  {command('report', first.parent)}\n  {command('export', first, '--out', 'adapter')}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show(
    groups: dict[str, list[Run]],
    last: int | None,
    references: Sequence[str],
    save: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print the comparison of groups of runs, and write it as Markdown if a file is given.

    Parameters
    ----------
    groups
        The runs that differ only in their seed, by label.
    last
        The number of last evaluated rounds that are averaged; None for as many as the run file says.
    references
        The labels that the others are compared with, seed by seed.
    save
        The Markdown file.
    as_json
        Print JSON, not a table.
    """
    for reference in references:
        if reference not in groups:
            raise ConfigError(f"--reference '{reference}': no such label; allowed: {', '.join(groups)}")
    if as_json:
        rows = compare_rows(groups, last)
        print(rows_json([*rows, *group_rows(groups, rows[0]["metric"], last)]))
    else:
        print(comparison(groups, last, references, width=terminal_width()), end="")
    if save is not None:
        write_bytes(save, comparison(groups, last, references, "markdown").encode())
