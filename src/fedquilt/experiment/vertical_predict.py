"""Predictions that all parties of a vertical run make together, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedquilt.config.groups import party_parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import DataError, RunError
from fedquilt.core.types import Order
from fedquilt.core.vertical import TEST
from fedquilt.experiment.build import build
from fedquilt.experiment.predictions import Predictions
from fedquilt.experiment.threads import restored_threads
from fedquilt.experiment.vertical_query import (
    QueryRows,
    joint_predictions,
    predict_exchange,
    query_rows,
    trained_parties,
)
from fedquilt.record import read_environment, read_partition
from fedquilt.vertical.alignment.exchanges import ALIGNED
from fedquilt.vertical.query import first_query, query_exchanges


def predicted_together(
    run: Path, config: Config, inputs: Sequence[str], without: Sequence[str], id: str | None = None
) -> Predictions:
    """Predictions of a vertical run's parties for rows that all of them hold.

    The run is built from its own data again, as when it is resumed. Each passive party embeds its columns of the rows,
    as in the exchange of an evaluation, and the active party predicts.

    Parameters
    ----------
    run, config
        The run's folder and its config.
    inputs
        One file with all parties' columns, or ``PARTY=FILE`` for each party, whose rows are in one order.
    without
        The labels of the parties that are missing.
    id
        The column by which rows of several files are the same; rows are those of the active party's file, and a party
        that does not have one is missing in it. None if rows are in one order.

    Raises
    ------
    FedquiltError
        RunError if there is no such party, the active one is missing, or an encoder is not here; DataError if rows
        cannot be read, or files differ in their number.
    """
    labels = tuple(part.label for part in party_parts(config))
    files = files_of(labels, inputs, without)
    _, state, memories = trained_parties(run)
    with restored_threads():
        torch.set_num_threads(read_environment(run)["threads"])  # sums depend on it
        experiment = build(config)
        if experiment.partition["digest"] != read_partition(run)["digest"]:
            raise RunError(
                f"{run}: data.source = '{config.data.source}' is not dealt to the parties as when the run began; bring "
                "back what it began with"
            )
        rows = {label: query_rows(experiment, label, file, id) for label, file in files.items()}
        if id is None:
            _same_number(rows, files)
        own = rows[labels[-1]]
        query = first_query("", len(own), own.ids)
        chosen = query["alignment"]["rows"].tolist()
        answer = query_exchanges(predict_exchange(experiment), None if id is None else "keyed-hash", None)[-1]
        for number, party in sorted(experiment.clients.items()):
            label, memory = labels[number], memories.get(number, {})
            if label not in files:
                continue
            if not memory and str(number) in state["told"]:
                raise RunError(
                    f"{run}: the encoder of party '{label}' stays on its own site, so it cannot embed rows here; ask "
                    f"the sites with --superlink, or leave it out with --without '{label}'"
                )
            if id is not None:
                place = {one: row for row, one in enumerate(rows[label].ids)}
                found = torch.tensor([place.get(own.ids[row], -1) for row in chosen])
                query["alignment"]["holds"][str(number)] = found >= 0
                memory = {**memory, ALIGNED: found}
            asked = Order({}, {"count": len(own)}, round=config.rounds, rng=experiment.rng.child("predictions"))
            reply, _ = answer.work(replace(party, splits={TEST: rows[label].columns}), asked, memory)
            query["answers"][str(number)] = reply.params
        return joint_predictions(experiment, state, query, own)


def files_of(labels: Sequence[str], inputs: Sequence[str], without: Sequence[str]) -> dict[str, str]:
    """The file of each party that is there, by label.

    Parameters
    ----------
    labels
        The parties, the active one last.
    inputs, without
        As for ``predicted_together``.

    Raises
    ------
    RunError
        if a party is unknown, has no file or two, or the active one is missing.
    """
    for label in without:
        if label not in labels:
            raise RunError(f"--without {label}: there is no such party; the parties are {', '.join(labels)}")
    if labels[-1] in without:
        raise RunError(f"--without {labels[-1]}: is the active party, which predicts; no other can do without it")
    wanted = [label for label in labels if label not in without]
    named: dict[str, str] = {}
    whole: list[str] = []
    for given in inputs:
        label, is_named, file = given.partition("=")
        if not is_named or label not in labels:
            whole.append(given)
        elif label in named:
            raise RunError(f"--input {given}: party '{label}' has the file {named[label]} already; give it one")
        else:
            named[label] = file
    if whole and (named or len(whole) > 1):
        raise RunError(
            f"--input {whole[-1]}: give one file with the columns of all parties, or PARTY=FILE for each of "
            f"{', '.join(labels)}"
        )
    if whole:
        return dict.fromkeys(wanted, whole[0])
    for label in wanted:
        if label not in named:
            raise RunError(f"--input: party '{label}' has no file; add --input '{label}=FILE', or --without '{label}'")
    return {label: named[label] for label in wanted}


def _same_number(rows: Mapping[str, QueryRows], files: Mapping[str, str]) -> None:
    """Raise DataError if the parties' files have other numbers of rows."""
    sizes = {label: len(own) for label, own in rows.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"'{label}' has {size} ({files[label]})" for label, size in sizes.items())
        raise DataError(f"--input: the parties' rows must be the same ones in one order, and {counts}")
