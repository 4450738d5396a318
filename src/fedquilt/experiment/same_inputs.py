"""Whether data and model are those that a run began with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path

from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId
from fedquilt.data.table import Columns, digest, digest_of_many
from fedquilt.experiment.bases import other_weights
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.inputs_record import outputs_record, rows_of, weights_digest
from fedquilt.experiment.server import questions_columns
from fedquilt.record import read_environment, read_partition


def all_rows(experiment: Experiment, digest: Callable[[Iterable[Columns]], str] = digest_of_many) -> str:
    """The digest of all rows that are in this process: the clients' and the server's."""
    own = chain(experiment.clients.values(), (group.server for group in experiment.models))
    return digest(chain(rows_of(own), questions_columns(experiment.federation.server)))


def rows_as_at_start(folder: Path, announced: Mapping[ClientId, int]) -> dict[ClientId, int]:
    """The announced numbers of rows; as at the start for clients absent now, and 0 for clients absent at the start."""
    began = {int(one["id"]): int(one["examples"]) for one in read_partition(folder)["clients"]} if announced else {}
    return {client: announced.get(client, rows) if rows else 0 for client, rows in began.items()}


def same_inputs(folder: Path, experiment: Experiment) -> None:
    """Raise RunError if data or model are not those that the run began with."""
    advice = "bring back what the run began with, or start a new run in another folder"
    source = "', '".join(dict.fromkeys(group.config.data.source for group in experiment.models))
    if experiment.partition["digest"] != read_partition(folder)["digest"]:
        raise RunError(f"{folder}: data.source = '{source}' is not partitioned as when the run began; {advice}")
    if weights_digest(experiment.models) != read_environment(folder)["model"]:
        other = other_weights([group.config for group in experiment.models], read_environment(folder)["device"])
        raise RunError(f"{folder}: {other}; {advice}")
    outputs, began = outputs_record(experiment.models), read_environment(folder).get("outputs")
    if began is not None and began != outputs:
        raise RunError(
            f"{folder}: the classes of the model's outputs are {outputs} and were {began} when the run began: the "
            f"base's id2label or the data's class names have changed; {advice}"
        )
    # last: rows are compared in encoded form, with labels in the order of the outputs
    rows = read_environment(folder).get("rows")
    # earlier versions recorded the other digest
    if rows is not None and rows != all_rows(experiment) and rows != all_rows(experiment, digest):
        raise RunError(
            f"{folder}: data.source = '{source}', or the test set, has other rows than when the run began; {advice}"
        )
