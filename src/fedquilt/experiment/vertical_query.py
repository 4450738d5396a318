"""A query of a vertical run: the rows of new files as its parties read them, and what these predict."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedquilt.config.groups import party_parts
from fedquilt.core.errors import ConfigError, DataError, RunError
from fedquilt.core.method import Exchange
from fedquilt.core.query import Query
from fedquilt.core.shell import command
from fedquilt.core.types import ClientId, Memory, Reply, Tree
from fedquilt.core.vertical import TEST
from fedquilt.data.table import Columns, take
from fedquilt.engine.flower.memory_store import MemoryStore, memory_folder
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.predictions import Predictions, of_logits, read_rows
from fedquilt.experiment.vertical import dealing_of, encoded, seen_by
from fedquilt.experiment.vertical_files import ids_of
from fedquilt.record import Record, hold, read_environment, read_result
from fedquilt.vertical.exchanges import PREDICT
from fedquilt.vertical.query import QueryState, asked_rows, held_rows, query_exchanges


@dataclass(frozen=True)
class QueryRows:
    """Rows of a query as one party holds them: as its encoder reads them, and their ids, if rows are found by these."""

    columns: Columns
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["labels"])


def query_rows(
    experiment: Experiment, label: str, file: str, id: str | None = None, *, option: str = "--input"
) -> QueryRows:
    """The rows of a party's file for a query.

    Parameters
    ----------
    experiment, label
        The experiment, and the party.
    file
        The file, or another source.
    id
        The column of ids; None for rows without.
    option
        What the file was given with, for errors.

    Raises
    ------
    DataError
        if the rows or their ids cannot be read.
    """
    group = next(group for group in experiment.models if group.label == label)
    config = experiment.config
    (part,) = (part for part in party_parts(config) if part.label == label)
    loaded = group.loaded
    table = read_rows(part.config, file, loaded.reading.features, config.objects, option=option)
    # its features name the columns of a table; patterns may stand for some that a party's own file lacks
    columns = encoded(loaded, table if part.party and part.party.columns else seen_by(part, table))
    if id is None:
        return QueryRows(columns)
    fold_case, key = dealing_of(config).fold_case, f"{option} '{file}', column of ids '{id}'"
    ids = ids_of(file, id, fold_case=fold_case, objects=config.objects, key=key)
    if len(ids) != len(table):
        raise DataError(f"{option} '{file}': has {len(ids)} ids for {len(table)} rows")
    return QueryRows(columns, ids)


def trained_parties(run: Path) -> tuple[int, Tree, dict[ClientId, Memory]]:
    """The finished rounds of a run, the active party's state after them, and what passive parties here remember.

    Raises
    ------
    RunError
        if no round is finished.
    """
    with nullcontext() if read_result(run) is not None else hold(run) as held:
        record = Record.open(run, held=held)
        if not record.has_checkpoint:
            raise RunError(
                f"{run} has no finished round to predict with; go on with: {command('run', '--resume', run)}"
            )
        start, state, memories = record.load_checkpoint()
    around = read_environment(run)
    if around.get("engine") == "flower-sim":  # its sites are folders of the run's
        folders = {int(id): memory_folder(run / "sites", around["run_key"], int(id)) for id in state["told"]}
        memories = {id: MemoryStore(folder).before((start, 0)) for id, folder in folders.items()}
    return start, state, memories


def predict_exchange(experiment: Experiment) -> Exchange:
    """The exchange in which a method's parties embed rows that are predicted, for rows that they are given."""
    vertical = experiment.federation.vertical
    assert vertical is not None, "the run is a vertical one"
    # parties that have aligned their files would answer about common rows
    given = experiment.make_method(replace(experiment.federation, vertical=replace(vertical, halves=None)))
    (exchange,) = (one for one in given.exchanges if one.name == PREDICT)
    return exchange


def joint_predictions(experiment: Experiment, state: Tree, query: QueryState, own: QueryRows) -> Predictions:
    """What the active party predicts from the answers to a query.

    Parameters
    ----------
    experiment, state
        The experiment, and the active party's state after the run.
    query, own
        The query once it is answered, and the active party's rows.
    """
    vertical, method = experiment.federation.vertical, experiment.method
    assert vertical is not None, "the run is a vertical one"
    assert method.logits is not None, "a vertical method predicts together"
    order = query["alignment"]["rows"]
    replies = [Reply(int(id), params, 1.0) for id, params in query["answers"].items()]
    logits = method.logits(state, replies, take(own.columns, order), held_rows(query, len(vertical.parties)))
    return of_logits(logits[order.argsort()], vertical.classes)._replace(ids=own.ids)


def alignment_of(experiment: Experiment) -> str | None:
    """How the rows of a query are aligned; None if the parties find them by place."""
    dealing = dealing_of(experiment.config)
    return None if dealing.id is None else dealing.alignment


def site_query(experiment: Experiment, partition: ClientId, file: str) -> Query:
    """A passive party's side of a query about the rows of its own ``file``.

    Raises
    ------
    FedquiltError
        ConfigError if the run has no parties; DataError if the rows cannot be read.
    """
    if experiment.federation.vertical is None:
        raise ConfigError("query: in the node's config is of vertical runs; leave it out")
    dealing, client = dealing_of(experiment.config), experiment.clients[partition]
    rows = query_rows(experiment, experiment.group_of(partition).label, file, dealing.id, option="query")
    exchanges = query_exchanges(predict_exchange(experiment), alignment_of(experiment), None)
    asked = replace(client, splits={TEST: rows.columns}, ids=rows.ids)
    given = partial(asked_rows, rows.columns, by_id=dealing.id is not None)
    noised = experiment.config.disclosure
    return Query(exchanges, asked, given, noised.embedding_noise, noised.delta)
