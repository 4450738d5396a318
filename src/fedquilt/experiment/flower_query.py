"""Predictions between sites on Flower: the active party asks the others about new rows, after a run.

The query starts like the run: an app with the run file, whose ServerApp is told the active party's file of the rows and
where to write the predictions. A passive party answers about the rows of the file that its own node names, and about no
others. Its memory of the run gives it its encoder, and is not changed; nor is the run's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedquilt.config.groups import party_parts
from fedquilt.config.load import parse
from fedquilt.core.closing import passed
from fedquilt.core.errors import ConfigError, RoundError, RunError
from fedquilt.core.rng import secret
from fedquilt.core.types import ClientId, Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.defence import check_of
from fedquilt.experiment.flower import over
from fedquilt.experiment.predictions import Predictions, write_lines
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.same_inputs import rows_as_at_start, same_inputs
from fedquilt.experiment.threads import restored_threads
from fedquilt.experiment.vertical import dealing_of
from fedquilt.experiment.vertical_files import key_of
from fedquilt.experiment.vertical_predict import files_of
from fedquilt.experiment.vertical_query import (
    alignment_of,
    joint_predictions,
    predict_exchange,
    query_rows,
    trained_parties,
)
from fedquilt.record import read_config, read_environment
from fedquilt.vertical.alignment.exchanges import Held
from fedquilt.vertical.query import QueryState, first_query, query_exchanges

log = logging.getLogger("flwr")


def answered(
    grid: Any, run: Path, file: str, without: Sequence[str] = (), *, name: str = "flower", poll: float = 1.0
) -> Predictions:
    """Predictions for the rows of a file of the active party, with what the other parties answer about them.

    Parameters
    ----------
    grid
        Flower's Grid.
    run
        The run's folder, which is only read.
    file
        The active party's rows: with ``partition.id`` the column of ids tells which rows the others embed; otherwise
        their files have the same rows in the same order.
    without
        The labels of parties that are not asked. A party that does not answer is missing too.
    name
        The name of the engine that the run began with.
    poll
        As for ``over``.

    Raises
    ------
    FedquiltError
        RoundError if no party answers; RunError if the run is not one of parties on Flower; DataError if the rows
        cannot be read.
    """
    config = parse(read_config(run))
    if not config.parties:
        raise RunError(f"{run}: is no vertical run, so its model predicts without its clients; leave --superlink out")
    around = read_environment(run)
    if around.get("engine") != name:
        raise RunError(f"{run}: its parties were all in one process, so they predict there; leave --superlink out")
    labels = tuple(part.label for part in party_parts(config))
    # one file stands for all parties, and says who is there
    asked = [label for label in files_of(labels, [file.removeprefix(f"{labels[-1]}=")], without) if label != labels[-1]]
    start, state, _ = trained_parties(run)
    with restored_threads():
        torch.set_num_threads(around["threads"])
        clients = [number for number, label in enumerate(labels) if label in asked]
        connect = over(grid, config, name=name, poll=poll, category="query", clients=clients)
        experiment = build(connect.adapted(config), connect.here)
        dealing = dealing_of(config)
        own = query_rows(experiment, labels[-1], file.removeprefix(f"{labels[-1]}="), dealing.id)
        engine = connect.make(experiment, around["run_key"], {}, Silent())
        experiment = experiment.announced(rows_as_at_start(run, engine.announced))
        same_inputs(run, experiment)
        holder = None if dealing.id is None else Held(own.ids, key_of(dealing))
        exchanges = query_exchanges(predict_exchange(experiment), alignment_of(experiment), holder)
        profiles = tuple(one for one in experiment.federation.profiles if one.id in clients)
        query = first_query(f"{secret().integer(128):032x}", len(own), own.ids)
        turn = Turn(start, profiles, experiment.rng.child("query"))
        check = check_of(config, experiment.federation.profiles)
        query, traffic = passed(exchanges, query, turn, engine.send, check)
        reasons = {id: words for moved in traffic for id, words in moved.dropped.items()}
        missing = _missing(query, labels, clients, reasons) if any(moved.bytes_down for moved in traffic) else {}
        if missing and not query["answers"]:
            raise RoundError(f"no party answered: {'; '.join(f'{label}: {why}' for label, why in missing.items())}")
        return joint_predictions(experiment, state, query, own)._replace(missing=missing)


def _missing(
    query: QueryState, labels: Sequence[str], asked: Sequence[ClientId], reasons: Mapping[ClientId, str]
) -> dict[str, str]:
    """Why parties that were asked did not answer, by label."""
    refused = query["alignment"]["refused"]
    return {
        labels[id]: reasons.get(id) or refused.get(str(id)) or "did not answer"
        for id in asked
        if str(id) not in query["answers"]
    }


def answer(grid: Any, folder: Path, asked: Mapping[str, Any]) -> None:
    """The ServerApp's side of a query: write the predictions to the file that the run config names.

    ``asked`` is Flower's run config, with ``query``, ``out`` and ``without``.

    Raises
    ------
    FedquiltError
        as ``answered``; ConfigError if the run config names no file for the predictions.
    """
    out = str(asked.get("out") or "")
    if not out:
        raise ConfigError("query: without a file for the predictions; add out='/path/predictions.csv' to --run-config")
    without = [label for label in str(asked.get("without") or "").split(",") if label]
    found = answered(grid, folder, str(asked["query"]), without)
    for label, reason in found.missing.items():
        log.warning("fedquilt: party '%s' is missing: %s", label, reason)
    lines = list(found.lines())
    write_lines(lines, Path(out))
    log.info("fedquilt: wrote %d predictions to %s", len(lines), out)
