"""Predictions of a run's final model, or of all parties of a vertical run together, for the rows of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fedquilt.client.task import scoring_of
from fedquilt.client.texts import completions
from fedquilt.client.workbench import Workbench
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId, Layout
from fedquilt.data.table import Table
from fedquilt.experiment.groups import precision_of
from fedquilt.experiment.models import device_of
from fedquilt.experiment.predictions import Predictions, of_logits, read_rows, unlabelled
from fedquilt.experiment.prompt_checks import language_of
from fedquilt.experiment.trained_model import trained
from fedquilt.experiment.vertical_predict import predicted_together
from fedquilt.models.loaded import Loaded
from fedquilt.record import read_config


def predict(
    run: Path,
    inputs: Sequence[str],
    client: ClientId | None = None,
    group: str | None = None,
    *,
    server: bool = False,
    without: Sequence[str] = (),
    id: str | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> Predictions:
    """Predict rows by a run's model with the adapter of the last checkpoint, or by all parties of a vertical run.

    For a finished run that is not vertical neither data nor checkpoint is needed. A language model completes its
    prompts greedily.

    Parameters
    ----------
    run, inputs
        The run's folder, and the file of the rows. For a vertical run it has all parties' columns, or there are several
        files as ``PARTY=FILE``, whose rows are in one order.
    client, group
        The client, or the label of the group; None for the global model.
    server
        Whether the model that the server owns is meant.
    without
        The labels of parties of a vertical run that are missing.
    id
        The column of ids by which the files of a vertical run's parties have the same rows; None if these are in one
        order.
    objects
        ``Config.objects``.

    Raises
    ------
    FedquiltError
        RunError if there is no such model or party, DataError if rows cannot be read.
    """
    config = parse(read_config(run)).with_objects(objects)
    if config.parties:
        if client is not None or group is not None or server:
            raise RunError(f"{run}: all parties predict together; leave --client, --group and --server out")
        return predicted_together(run, config, inputs, without, id)
    if without:
        raise RunError(f"--without {without[0]}: {run} is no vertical run, so it has no parties; leave it out")
    if id is not None:
        raise RunError(f"--id {id}: {run} is no vertical run, so there is one file of rows; leave it out")
    if len(inputs) != 1:
        raise RunError(f"--input: {len(inputs)} are given; give one, for only the parties of a vertical run have each")
    own, loaded = trained(run, client, group, objects, server=server)
    return _alone(own, loaded, read_rows(own, inputs[0], loaded.reading.features, objects))


def _alone(config: Config, loaded: Loaded, table: Table) -> Predictions:
    """Predictions of one model, whose tensors are loaded."""
    size, language = config.evaluation.batch_size, language_of(loaded)
    bench = bench_of(config, loaded)
    if language is not None:
        columns = loaded.encode(replace(table, targets=[""] * len(table)))
        return Predictions(texts=tuple(completions(bench, language, columns, config.data.new_tokens, size)))
    rows = unlabelled(loaded, table)
    with torch.no_grad():
        parts = [
            bench.forward({name: column[first : first + size] for name, column in rows.items()})[0].cpu()
            for first in range(0, len(table), size)
        ]
    return of_logits(torch.cat(parts), loaded.outputs.classes)


def bench_of(config: Config, loaded: Loaded) -> Workbench:
    """The model on its device, with nothing that could be trained or replaced."""
    return Workbench(
        loaded.model,
        loaded.blocks,
        Layout(loaded.architecture, loaded.blocks.num_layers, {}, {}),
        {},
        loaded.prepare,
        scoring=scoring_of(config.model.task),
        device=device_of(config.device),
        precision=precision_of(config),
        longest=loaded.reading.longest,
        pads_left=loaded.reading.pads_left,
    )
