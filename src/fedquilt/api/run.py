"""One run: made from a config, or opened where it lies; what it holds is read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.api.objects import objects_of, refuse_missing
from fedquilt.api.progress import Watcher, progress_of
from fedquilt.api.rows import Rows
from fedquilt.api.settings import ConfigLike, settled
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.types import ClientId
from fedquilt.record.read import read_config, read_result, read_rounds
from fedquilt.report import runs as reading
from fedquilt.report import scores
from fedquilt.report.table import cells, summary

if TYPE_CHECKING:
    from torch import nn

    from fedquilt.report.figure import Figure

ENGINES = ("embedded", "flower-sim")


@dataclass(frozen=True, repr=False)
class Run:
    """A run, finished or not, as its folder holds it.

    Nothing is kept in memory: each property and method reads the folder again, and checks what it reads against the
    sha256 that the run noted. Rounds are counted from 1 in tables, curves and plots, and from 0 in ``rounds``, which
    are the lines of the record as they were written.

    Raises
    ------
    RunError
        if the folder holds no run, or something in it was changed.
    """

    folder: Path
    objects: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Models and rows in memory that the run began with, by the names that stand for them in its config."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        read_config(self.folder)

    @property
    def config(self) -> Config:
        """The config that the run was started with, defaults and all."""
        return parse(read_config(self.folder))

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """The record of each finished round: clients, bytes, seconds, scores; see ``rounds.jsonl`` in the folder."""
        return list(read_rounds(self.folder))

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What the run ended with, or None as long as it has not."""
        return read_result(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run went through to its last round."""
        return self.result is not None

    @property
    def files(self) -> reading.Run:
        """Everything in the folder at once, parsed, as ``fedquilt.report`` takes it."""
        return reading.read_run(self.folder)

    @property
    def label(self) -> str:
        """What the run is called in tables and plots: its label, or else its method."""
        return self.files.label or self.files.method

    def table(self, last: int | None = None) -> Rows:
        """Return the run's results in one row: means over its ``last`` evaluated rounds, final scores, bytes, seconds.

        ``last`` is ``evaluation.last`` of the config if left out. The keys are those of ``report.table.summary``.
        """
        rows = [summary(self.files, last)]
        return Rows(rows, cells(rows))

    def curve(self, metric: str | None = None, who: str | None = None) -> dict[str, list[Any]]:
        """Return the evaluated rounds and a metric's value in each: ``{"round": [1, 2], "accuracy": [0.4, 0.6]}``.

        ``metric`` is accuracy where it was measured and else the loss. ``who`` is ``"global"`` (the server's model on
        the common test set), or one of the ways to sum up clients on their own test sets: ``"clients-mean"``,
        ``"clients-weighted"``, ``"clients-worst"``, ``"clients-deviation"``, ``"received-mean"``. If left out it is the
        first of these that was measured. ``pandas.DataFrame(run.curve())`` takes what is returned.
        """
        files = self.files
        metric = metric or scores.main_metric(files)
        for one in [who] if who else [*scores.WHO]:
            numbers, values = scores.curve(files, metric, one)
            if numbers:
                return {"round": [number + 1 for number in numbers], metric: values}
        return {"round": [], metric: []}

    def plot(self, kind: str = "rounds", who: str | None = None) -> Figure:
        """Return a matplotlib figure of the run, which a notebook shows where it is a cell's last value.

        ``kind``: ``"rounds"`` and ``"bytes"`` draw scores over rounds and over the bytes that were sent, with ``who``
        as for ``curve``; ``"partition"`` draws which client holds which classes, ``"allocation"`` who trained which
        layers, ``"probabilities"`` how likely a layer was to be drawn.
        """
        from fedquilt.report.pictures import draw

        return draw({self.label: [self.files]}, kind, who)

    def adapter(self, client: ClientId | None = None, *, group: str | None = None) -> Path:
        """Return the folder of a trained adapter: the global one, a group's, or that which a client would use.

        ``PeftModel.from_pretrained(base, folder)`` and ``fedquilt.load_adapter(base, folder)`` read it. With
        ``adapter.kind = "full"`` it holds the whole model. ``fedquilt export`` copies it to another place. Of an
        unfinished run it is made from the last checkpoint.

        Raises
        ------
        RunError
            if there is no checkpoint, no such client or group, or no global model because its parts stay with clients.
        """
        from fedquilt.experiment.export import adapter_folder

        return adapter_folder(self.folder, client, group, self.objects)

    def model(self, client: ClientId | None = None, *, group: str | None = None) -> nn.Module:
        """Return the model with a trained adapter in it, frozen and in eval mode; arguments as for ``adapter``.

        A model of your own is copied; what ``run`` was given stays as it was.
        """
        from fedquilt.experiment.trained_model import trained_model

        refuse_missing(self.config, self.objects, self.folder, of="model")
        return trained_model(self.folder, client, group, self.objects)

    def resume(self, *, back_to: int | None = None, progress: Watcher = None) -> Run:
        """Go on with a run that stopped, to the same bits as if it had not; a finished one is left as it is.

        Parameters
        ----------
        back_to
            Go back to the state after so many rounds, and forget what came after.
        progress
            As for ``run``.
        """
        if self._engine == "flower-sim":
            from fedquilt.experiment.flower import simulate

            simulate(None, self.folder, progress_of(progress), back_to=back_to)
        else:
            from fedquilt.experiment.run import resume

            config = self.config.with_objects(self.objects)
            refuse_missing(config, self.objects, self.folder)
            resume(self.folder, config, progress_of(progress), back_to=back_to)
        return self

    @property
    def _engine(self) -> str:
        from fedquilt.record.read import read_environment

        return str(read_environment(self.folder).get("engine", "embedded"))

    def __repr__(self) -> str:
        config, done = self.config, len(self.rounds)
        return f"Run('{self.folder}'): {config.method.name}, {done} of {config.rounds} rounds"

    def _repr_html_(self) -> str:
        title = f"<p><code>{escape(repr(self))}</code></p>"
        return title + (self.table()._repr_html_() if self.rounds else "")


def open_run(folder: str | Path, *, model: Any = None, tokenizer: Any = None, data: Any = None) -> Run:
    """Return the run in a folder.

    Parameters
    ----------
    folder
        The run's folder.
    model, tokenizer, data
        The objects in memory that the run began with, if it did: needed to resume it, and ``model`` for ``Run.model``.
        The same ones are recognised by their digest. A list is several of them.

    Raises
    ------
    RunError
        if the folder holds no run, or something in it was changed.
    """
    return Run(Path(folder), objects_of(model, tokenizer, data))


def run(
    config: ConfigLike = None,
    *,
    folder: str | Path | None = None,
    label: str | None = None,
    progress: Watcher = None,
    engine: str = "embedded",
    **sections: Any,
) -> Run:
    """Run one federation to its end, and return it.

    Parameters
    ----------
    config
        A dictionary with the sections of a run file, a ``Config``, the path of a run file, or nothing.
    folder
        The run's folder, which must be new or empty. If left out it is ``OUTPUT/NAME`` of the config, with a number
        behind it where that folder is taken.
    label
        What the run is called in tables and plots; its method if left out.
    progress
        Nothing is shown by default. True prints a line for each round; a function is called with the record of each
        round; an object with the methods of ``experiment.run.Progress`` also hears of clients and steps.
    engine
        ``"embedded"`` plays all clients in this process, ``"flower-sim"`` runs them on Flower's simulation.
    sections
        Sections and keys of a run file that are laid over ``config`` key by key, as ``key=value`` is on the command
        line: ``rounds=3, training={"steps": 2}``. Text in place of a section is its first choice: ``model="glyph-vit"``
        its name, ``data="rows.csv"`` its source, ``method="fedit"`` its name, ``partition="dirichlet"`` its scheme.
        ``task`` is the model's. ``model`` may also be an ``nn.Module`` or an ``OwnModel``, with a ``tokenizer`` beside
        it; ``data`` a dictionary of arrays, a pandas frame or a ``datasets.Dataset``, or a pair (train, test) of these.

    Raises
    ------
    ConfigError
        with every problem of the config.
    FedquiltError
        of the kind that fits, if the data or the model cannot be used, or the run cannot go on.
    """
    if engine not in ENGINES:
        raise ConfigError(
            f"engine = {engine!r}: no such engine{suggestion(str(engine), ENGINES)}; allowed: {', '.join(ENGINES)}"
        )
    if engine == "flower-sim" and label is not None:
        raise ConfigError(f"label = {label!r}: runs of engine = 'flower-sim' have none; leave it out")
    settings = settled(config, sections)
    if engine != "embedded" and settings.objects:
        raise ConfigError(
            f"engine = {engine!r}: its clients are other processes, which cannot see '{min(settings.objects)}'; use "
            "engine = 'embedded', or save the model and the rows to files and name these"
        )
    place = _free(Path(settings.output) / settings.name) if folder is None else Path(folder)
    if engine == "flower-sim":
        from fedquilt.experiment.flower import simulate

        return Run(simulate(settings, place, progress_of(progress)))
    from fedquilt.experiment.run import run as embedded

    return Run(embedded(settings, place, progress_of(progress), label=label), settings.objects)


def _free(place: Path) -> Path:
    """The folder, or the first of this name with a number behind it that is not taken."""
    number, free = 1, place
    while free.exists() and any(free.iterdir()):
        number += 1
        free = place.with_name(f"{place.name}-{number}")
    return free
