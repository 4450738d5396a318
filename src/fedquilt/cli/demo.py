"""``fedquilt demo``."""

from __future__ import annotations

from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

import fedquilt
from fedquilt.cli.compare import show
from fedquilt.cli.screen import Shown, errors, out, show_table
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.shell import command
from fedquilt.report.groups import WORST, group_values
from fedquilt.report.round_text import round_text
from fedquilt.report.runs import Run, read_run

Groups = dict[str, list[Run]]


def _both_sides(groups: Groups) -> None:
    """Print the accuracy of each client and of the server at the end of each run."""
    ended = [group_values(runs, "accuracy") for runs in groups.values()]
    rows = [["accuracy", *groups]]
    for owner in (name for name in ended[0] if name != WORST):
        finals = [float(values[owner][0]["final"] or 0.0) for values in ended]
        rows.append([owner, *(f"{final:.0%}" for final in finals)])
    show_table(rows)


ASSETS = Path(str(resources.files(fedquilt) / "assets"))
DEFAULT = "digits"
DEMOS = {DEFAULT: ASSETS / "demo.toml", **{file.stem[5:]: file for file in sorted(ASSETS.glob("demo-*.toml"))}}
"""The run file of each demonstration; the comment at its beginning says what is compared."""


def words(file: Path) -> str:
    """The comment at the beginning of a file."""
    lines = file.read_text("utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def demo(
    name: Annotated[str, typer.Argument(help=f"Which demonstration: {' or '.join(DEMOS)}.")] = DEFAULT,
    output: Annotated[Path, typer.Option(help="Folder for runs, plots and the HTML page.")] = Path("runs"),
    workers: Annotated[int, typer.Option(help="Number of runs in parallel, each in its own process.")] = 2,
) -> None:
    """Fine-tune small models across clients: a ViT on digits, a network on tables, language models on word problems.

    Nothing is downloaded. It takes about a minute, and up to three for language models.
    """
    from fedquilt.experiment.compare import Job
    from fedquilt.experiment.compare import compare as run_all
    from fedquilt.experiment.compare import jobs as jobs_of
    from fedquilt.report.page import write_page
    from fedquilt.report.plot import save_plots

    if name not in DEMOS:
        raise ConfigError(f"there is no demo '{name}'{suggestion(name, list(DEMOS))}; allowed: {', '.join(DEMOS)}")
    errors.print(f"{words(DEMOS[name])}\n", highlight=False, markup=False, soft_wrap=True)
    jobs = jobs_of(DEMOS[name], [f'output="{output.as_posix()}"'])
    try:
        with Shown() as progress:

            def announce(job: Job, number: int, of: int) -> None:
                progress.say(f"[{number}/{of}] {job.label}: {round_text(read_run(job.folder).rounds[-1])}")

            folders = run_all(jobs, workers=workers, progress=progress, on_done=announce)
    except KeyboardInterrupt:
        out.print(f"stopped; it continues from there with: {command('demo', name)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    groups = {label: [read_run(folder) for folder in own] for label, own in folders.items()}
    if jobs[0].config.server is None:
        show(groups, None, ())
    else:
        _both_sides(groups)
    folder = jobs[0].folder.parent
    save_plots(groups, folder / "plots")
    page = write_page(groups, folder / "report.html")
    run, group = jobs[0].folder, [part for party in jobs[0].config.parties[:1] for part in ("--group", party.label)]
    steps = [
        (command("methods", read_run(run).method), "its settings, paper and equations"),
        (command("plot", run, "--out", "plots"), "the plots of one run"),
        (command("export", run, *group, "--out", "adapter"), "the adapter, for PeftModel.from_pretrained"),
        (command("doctor"), "what this machine offers"),
    ]
    out.print(
        f"\nOne seed and few rounds: a demonstration, not a result. Plots: {folder / 'plots'}; all on one page: {page}"
        "\n\nNext:",
        *(f"  {line}\n      {what}" for line, what in steps),
        sep="\n",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
