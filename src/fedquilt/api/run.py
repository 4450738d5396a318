"""Runs: opening the folder of one, reading its results, and using what it has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.api.objects import inputs_of, objects_of, refuse_missing
from fedquilt.api.progress import Watcher, progress_of
from fedquilt.api.rows import Rows
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.types import ClientId
from fedquilt.record.read import read_config, read_result, read_rounds
from fedquilt.report import runs as reading
from fedquilt.report import scores
from fedquilt.report.table import cells, summary

if TYPE_CHECKING:
    from torch import nn

    from fedquilt.experiment.predictions import Predictions
    from fedquilt.report.figure import Figure


@dataclass(frozen=True, repr=False)
class Run:
    """A run, finished or not, in its folder.

    Nothing is kept in memory: each property and method reads the folder again and checks the files against the sha256
    digests of the run's record. Rounds are counted from 1 in tables, curves and plots, and from 0 in ``rounds``, which
    holds the lines of the record as they were written.

    Raises
    ------
    RunError
        if the folder holds no run, or a file in it was changed.
    """

    folder: Path
    objects: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Python objects (models and rows) that the run began with, by their names in its config."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        read_config(self.folder)

    @property
    def config(self) -> Config:
        """The config of the run, with all defaults."""
        return parse(read_config(self.folder))

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """The record of each finished round: clients, bytes, seconds and scores; the lines of ``rounds.jsonl``."""
        return list(read_rounds(self.folder))

    @property
    def result(self) -> Mapping[str, Any] | None:
        """The final result of the run; None if it is not finished."""
        return read_result(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.result is not None

    @property
    def files(self) -> reading.Run:
        """All content of the folder, parsed, as ``fedquilt.report`` takes it."""
        return reading.read_run(self.folder)

    @property
    def label(self) -> str:
        """The name of the run in tables and plots: its label, or else its method."""
        return self.files.label or self.files.method

    def table(self, last: int | None = None) -> Rows:
        """Return the results in one row: means over the last ``last`` evaluated rounds, final scores, bytes, seconds.

        ``last`` is ``evaluation.last`` of the config if left out. The keys are those of ``report.table.summary``.
        """
        rows = [summary(self.files, last)]
        return Rows(rows, cells(rows))

    def curve(self, metric: str | None = None, who: str | None = None) -> dict[str, list[Any]]:
        """Return the evaluated rounds and a metric's value in each: ``{"round": [1, 2], "accuracy": [0.4, 0.6]}``.

        ``metric`` is accuracy by default, or the loss if accuracy was not measured. ``who`` is ``"global"`` (the
        server's model on the common test set) or an aggregate of the clients' scores on their own test sets:
        ``"clients-mean"``, ``"clients-weighted"``, ``"clients-worst"``, ``"clients-deviation"``, ``"received-mean"``;
        by default the first of these that was measured. ``pandas.DataFrame(run.curve())`` makes a data frame of it.
        """
        files = self.files
        metric = metric or scores.main_metric(files)
        for one in [who] if who else [*scores.WHO]:
            numbers, values = scores.curve(files, metric, one)
            if numbers:
                return {"round": [number + 1 for number in numbers], metric: values}
        return {"round": [], metric: []}

    def plot(self, kind: str = "rounds", who: str | None = None) -> Figure:
        """Return a matplotlib figure of the run, which a notebook shows as the last value of a cell.

        ``kind``: ``"rounds"`` and ``"bytes"`` plot scores over rounds and over the communication cost, with ``who`` as
        for ``curve``; ``"partition"`` plots the classes of each client, ``"allocation"`` the layers that each client
        trained, ``"probabilities"`` the probability of drawing each layer; ``report.pictures.draw`` lists all kinds.
        """
        from fedquilt.report.pictures import draw

        return draw({self.label: [self.files]}, kind, who)

    def adapter(self, client: ClientId | None = None, *, group: str | None = None, server: bool = False) -> Path:
        """Return the folder of a trained adapter: the global one, a group's, a client's, or that of the server's model.

        ``PeftModel.from_pretrained(base, folder)`` or ``fedquilt.load_adapter(base, folder)`` loads it. After full
        fine-tuning (``adapter.kind = "full"``) it holds the whole model. ``fedquilt export`` copies it to another
        place. For an unfinished run it is built from the last checkpoint.

        Raises
        ------
        RunError
            if there is no checkpoint, no such client or group, or no global model because parts of it stay with the
            clients.
        """
        from fedquilt.experiment.export import adapter_folder

        return adapter_folder(self.folder, client, group, self.objects, server=server)

    def model(self, client: ClientId | None = None, *, group: str | None = None, server: bool = False) -> nn.Module:
        """Return the model with a trained adapter in it, frozen and in eval mode; arguments as for ``adapter``.

        A model that was given to ``run`` as an object is copied, not changed.
        """
        from fedquilt.experiment.trained_model import trained_model

        refuse_missing(self.config, self.objects, self.folder, of="model")
        return trained_model(self.folder, client, group, self.objects, server=server)

    def predict(
        self,
        rows: Any,
        *,
        client: ClientId | None = None,
        group: str | None = None,
        server: bool = False,
        without: Sequence[str] = (),
        id: str | None = None,
    ) -> Predictions:
        """Return the predictions for rows, which need no labels: of the final model, or of all parties together.

        ``list(found.lines())`` has a dictionary for each row, and ``found.probabilities`` is (rows, classes). Parties
        of a run on Flower are asked by ``fedquilt predict --superlink``.

        Parameters
        ----------
        rows
            A file, or a table as ``data`` of ``run`` may be. For a vertical run it has the columns of all parties, or
            is a dictionary with the file or table of each party by its label.
        client, group, server
            Whose model predicts, as for ``adapter``; the global one if left out. Not of a vertical run.
        without
            The labels of parties of a vertical run that are missing.
        id
            The column of ids by which the parties' rows are the same; None if these are in one order.

        Raises
        ------
        FedquiltError
            RunError if there is no such model or party, DataError if rows cannot be read.
        """
        from fedquilt.experiment.predict import predict

        refuse_missing(self.config, self.objects, self.folder)
        inputs, given = inputs_of(rows)
        objects = {**self.objects, **given}
        return predict(self.folder, inputs, client, group, server=server, without=without, id=id, objects=objects)

    def resume(self, *, back_to: int | None = None, progress: Watcher = None) -> Run:
        """Resume a stopped run; the result is bit-identical to that of an uninterrupted run.

        A finished run is not changed.

        Parameters
        ----------
        back_to
            Resume from the state after this many rounds, and discard later rounds.
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
        The Python objects that the run began with, if any: needed to resume it, and ``model`` for ``Run.model``. They
        are compared by their digest. A list holds several of them.

    Raises
    ------
    RunError
        if the folder holds no run, or a file in it was changed.
    """
    return Run(Path(folder), objects_of(model, tokenizer, data))
