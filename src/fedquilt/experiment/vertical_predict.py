"""Predictions that all parties of a vertical run make together, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fedquilt.config.groups import party_parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import DataError, RunError
from fedquilt.core.types import Order
from fedquilt.core.vertical import TEST
from fedquilt.data.table import Columns
from fedquilt.experiment.build import build
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.predictions import Predictions, of_logits, read_rows
from fedquilt.experiment.vertical import encoded, seen_by
from fedquilt.record import Record, hold, read_partition, read_result
from fedquilt.vertical.exchanges import PREDICT


def predicted_together(run: Path, config: Config, inputs: Sequence[str], without: Sequence[str]) -> Predictions:
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

    Raises
    ------
    FedquiltError
        RunError if there is no such party, the active one is missing, or an encoder is not here; DataError if rows
        cannot be read, or files differ in their number.
    """
    labels = tuple(part.label for part in party_parts(config))
    files = files_of(labels, inputs, without)
    with nullcontext() if read_result(run) is not None else hold(run) as held:
        record = Record.open(run, held=held)
        if not record.has_checkpoint:
            raise RunError(f"{run} has no finished round to predict with; go on with `fedquilt run --resume {run}`")
        _, state, memories = record.load_checkpoint()
    experiment = build(config)
    if experiment.partition["digest"] != read_partition(run)["digest"]:
        raise RunError(
            f"{run}: data.source = '{config.data.source}' is not dealt to the parties as when the run began; bring "
            "back what it began with"
        )
    rows = _rows(experiment, files)
    vertical = experiment.federation.vertical
    assert vertical is not None, "the run is a vertical one"
    # parties that have aligned their files would answer about common rows: here they are given the rows
    given = experiment.make_method(replace(experiment.federation, vertical=replace(vertical, halves=None)))
    (exchange,) = (one for one in given.exchanges if one.name == PREDICT)
    replies = []
    for id, party in sorted(experiment.clients.items()):
        if labels[id] not in files:
            continue
        if id not in memories and str(id) in state["told"]:
            raise RunError(
                f"{run}: the encoder of party '{labels[id]}' stays on its own site, so it cannot embed rows here; "
                f"leave it out with --without '{labels[id]}'"
            )
        asked = Order({}, round=config.rounds, rng=experiment.rng.child("predictions"))
        asking = replace(party, splits={**party.splits, TEST: rows[labels[id]]})
        replies.append(exchange.work(asking, asked, memories.get(id, {}))[0])
    assert experiment.method.logits is not None, "a vertical method predicts together"
    logits = experiment.method.logits(state, replies, rows[labels[-1]])
    return of_logits(logits, vertical.classes)


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


def _rows(experiment: Experiment, files: Mapping[str, str]) -> dict[str, Columns]:
    """The rows of each party as its encoder reads them, by label."""
    assert experiment.owner is not None, "the active party is the server"
    groups = {group.label: group for group in (*experiment.groups, experiment.owner)}
    parts = {part.label: part for part in party_parts(experiment.config)}
    found: dict[str, Columns] = {}
    sizes: dict[str, int] = {}
    for label, file in files.items():
        loaded, part = groups[label].loaded, parts[label]
        table = read_rows(part.config, file, loaded.reading.features)
        # its features name the columns of a table; patterns may stand for some that a party's own file lacks
        found[label] = encoded(loaded, table if part.party and part.party.columns else seen_by(part, table))
        sizes[label] = len(table)
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"'{label}' has {size} ({files[label]})" for label, size in sizes.items())
        raise DataError(f"--input: the parties' rows must be the same ones in one order, and {counts}")
    return found
