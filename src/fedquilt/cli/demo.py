"""``fedquilt demo``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

import fedquilt
from fedquilt.cli.compare import show
from fedquilt.cli.screen import Shown, errors, out
from fedquilt.report.round_text import round_text
from fedquilt.report.runs import read_run

WORDS = """\
Twelve clients hold two or three classes each of scikit-learn's 1,797 handwritten digits. A third of them can train the
adapters of 6 of the model's 12 blocks, a third 9, and a third all 12. Four methods are compared:
"""


def demo(
    output: Annotated[Path, typer.Option(help="Folder for runs, plots and the HTML page.")] = Path("runs"),
    workers: Annotated[int, typer.Option(help="Number of runs in parallel, each in its own process.")] = 2,
) -> None:
    """Fine-tune a small ViT across twelve heterogeneous clients.

    Nothing is downloaded; it takes about a minute.
    """
    from fedquilt.experiment.compare import Job
    from fedquilt.experiment.compare import compare as run_all
    from fedquilt.experiment.compare import jobs as jobs_of
    from fedquilt.report.page import write_page
    from fedquilt.report.plot import save_plots

    errors.print(WORDS, highlight=False, markup=False, soft_wrap=True)
    file = Path(str(resources.files(fedquilt) / "assets" / "demo.toml"))
    jobs = jobs_of(file, [f'output="{output.as_posix()}"'])
    try:
        with Shown() as progress:

            def announce(job: Job, number: int, of: int) -> None:
                if workers > 1:
                    progress.runs(number, of)
                progress.say(f"[{number}/{of}] {job.label}: {round_text(read_run(job.folder).rounds[-1])}")

            folders = run_all(jobs, workers=workers, progress=progress, on_done=announce)
    except KeyboardInterrupt:
        out.print("stopped; `fedquilt demo` continues from there", highlight=False)
        raise typer.Exit(130) from None
    groups = {label: [read_run(folder) for folder in own] for label, own in folders.items()}
    show(groups, None, ())
    folder = jobs[0].folder.parent
    save_plots(groups, folder / "plots")
    page = write_page(groups, folder / "report.html")
    hello = jobs[0].folder
    out.print(
        f"""
One seed and few rounds: a demonstration, not a result. Plots: {folder / "plots"}; all on one page: {page}

Next:
  fedquilt methods {read_run(hello).method:<22} its settings, paper and equations
  fedquilt plot {hello} --out plots
  fedquilt export {hello} --out adapter   the adapter, for PeftModel.from_pretrained
  fedquilt doctor                         what this machine offers""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
