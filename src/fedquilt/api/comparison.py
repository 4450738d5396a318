"""Comparing methods on the same data, partition and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.api.progress import Watcher, progress_of
from fedquilt.api.rows import Rows, terminal_width
from fedquilt.api.run import Run
from fedquilt.api.settings import ConfigLike, asked
from fedquilt.core.errors import ConfigError
from fedquilt.report.caveats import notes
from fedquilt.report.comparison import comparison, meaning
from fedquilt.report.paired_differences import paired_rows
from fedquilt.report.table import Groups, cells, compare_rows, shared_metric

if TYPE_CHECKING:
    from fedquilt.experiment.compare import Job
    from fedquilt.report.figure import Figure


@dataclass(frozen=True, repr=False)
class Comparison:
    """Finished runs by label; the runs of a label differ only in their seed.

    Printed, it shows its table and remarks on the results.
    """

    runs: Mapping[str, tuple[Run, ...]]

    @property
    def _groups(self) -> Groups:
        return {label: [run.files for run in own] for label, own in self.runs.items()}

    def table(self, last: int | None = None) -> Rows:
        """Return a row for each label: means over its seeds with their sample standard deviations.

        The last ``last`` evaluated rounds of each run are averaged; ``evaluation.last`` of its config if left out. The
        keys are those of ``report.table.compare_rows``.
        """
        rows = compare_rows(self._groups, last)
        return Rows(rows, cells(rows))

    def differences(self, reference: str, measure: str = "global", last: int | None = None) -> Rows:
        """Return the paired differences of each other label from ``reference`` over seeds, with confidence intervals.

        ``measure`` is ``"global"`` or ``"personalised"``.
        """
        if reference not in self.runs:
            raise ConfigError(f"reference = {reference!r}: no such label; allowed: {', '.join(self.runs)}")
        rows = paired_rows(self._groups, [reference], measure, last)
        return Rows(rows, cells(rows))

    def plot(self, kind: str = "rounds", who: str | None = None) -> Figure:
        """Return a figure as ``Run.plot`` does, a line for each label; bands are one standard deviation over seeds."""
        from fedquilt.report.pictures import draw

        return draw(self._groups, kind, who)

    def page(self, path: str | Path, references: Sequence[str] = ()) -> Path:
        """Write tables and interactive charts as one HTML file, and return its path."""
        from fedquilt.report.page import write_page

        return write_page(self._groups, path, references=references)

    def __repr__(self) -> str:
        return comparison(self._groups, width=terminal_width())

    def _repr_html_(self) -> str:
        groups = self._groups
        remarks = [meaning(shared_metric(groups)), *notes(groups)]
        return self.table()._repr_html_() + "".join(f"<p>{escape(remark)}</p>" for remark in remarks)


def compare(
    configs: ConfigLike | Sequence[ConfigLike] = None,
    *,
    methods: Sequence[str | Mapping[str, Any]] = (),
    seeds: Sequence[int] = (),
    workers: int = 1,
    progress: Watcher = None,
    **sections: Any,
) -> Comparison:
    """Run several configs or methods on the same data, partition and seeds.

    The run folders are in ``OUTPUT/NAME`` of their config. Finished runs are reused, and stopped runs are resumed.

    Parameters
    ----------
    configs
        One or several configs as for ``run``; each entry of their [[compare]] is a run of its own.
    methods
        Methods to run each config with, by name or as tables: ``["fedit", {"name": "fedra", "drop_layers": False}]``.
    seeds
        Seeds to run each config and method with; those of the config if left out.
    workers
        Number of runs in parallel, each in its own process. With more than one, the rounds that ``progress`` receives
        are interleaved (``line["run"]`` names the run), without clients and steps, and a script needs
        ``if __name__ == "__main__":``, as for all of Python's process pools.
    progress
        As for ``run``.
    sections
        As for ``run``; they apply to all configs.

    Raises
    ------
    FedquiltError
        as for ``run``; runs that have finished are kept.
    """
    from fedquilt.experiment.compare import compare as run_all
    from fedquilt.experiment.compare import jobs

    several: Sequence[Any] = configs if isinstance(configs, list | tuple) else [configs]
    changes = dict(sections)
    if methods:
        changes["compare"] = [{"method": method} for method in methods]
    if seeds:
        changes["seeds"] = seeds
    wanted = _apart([jobs(*asked(config, changes)) for config in several])
    folders = run_all(wanted, workers=workers, progress=progress_of(progress))
    objects = {job.label: job.config.objects for job in wanted}
    return Comparison({label: tuple(Run(folder, objects[label]) for folder in own) for label, own in folders.items()})


def _apart(found: Sequence[Sequence[Job]]) -> list[Job]:
    """The runs of all configs; a label that several configs have gets the name of the config as a prefix.

    Raises
    ------
    ConfigError
        if two configs with the same label also have the same name.
    """
    often = Counter(label for own in found for label in {job.label for job in own})
    wanted = [
        replace(job, label=f"{job.config.name}: {job.label}") if often[job.label] > 1 else job
        for own in found
        for job in own
    ]
    twice = Counter((job.label, job.seed) for job in wanted)
    if same := [label for (label, _), count in twice.items() if count > 1]:
        raise ConfigError(
            f"two configs have runs with the same label, '{same[0]}'; give each config its own name: name = 'first'"
        )
    return wanted
