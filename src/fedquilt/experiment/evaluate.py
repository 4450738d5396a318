"""Scores of a run's model, or of an exported one, on a labelled file: the loaders and metrics are those of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedquilt.client.score import evaluation
from fedquilt.config.load import parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import DataError, RunError
from fedquilt.core.rng import Rng
from fedquilt.core.shell import command
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId
from fedquilt.data.loaders import load_table, with_classes
from fedquilt.data.table import Table
from fedquilt.experiment.base_of_run import base_of_run
from fedquilt.experiment.data import check_kind, columns_of
from fedquilt.experiment.models import Form
from fedquilt.experiment.predict import bench_of
from fedquilt.experiment.prompt_checks import answering_of
from fedquilt.experiment.trained_model import adapted, trained
from fedquilt.models.features import saved_features
from fedquilt.models.loaded import Loaded
from fedquilt.record.read import is_run

ABOUT = "fedquilt.json"
"""The file of an export that says how its model reads rows: the run's config and the classes of the outputs."""


def evaluate(
    target: Path,
    source: str,
    client: ClientId | None = None,
    group: str | None = None,
    *,
    server: bool = False,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Return ``loss``, ``accuracy`` and ``examples`` of a model on labelled rows, as the run's own evaluation does.

    Parameters
    ----------
    target, source
        The folder of a run or of an export, and the rows: a file, or another source that ``data.source`` may name.
    client, group, server
        Whose model of a run, as for ``export.export``.
    objects
        ``Config.objects``.

    Raises
    ------
    FedquiltError
        RunError if the folder is neither, DataError if the rows cannot be read, have no labels or labels that the
        model does not know.
    """
    config, loaded = _model(target, client, group, objects, server=server)
    if config.parties:
        raise RunError(
            f"{target}: parties predict together, and evaluate scores single models; predict the rows with: "
            f"{command('predict', target, '--input', 'FILE')}"
        )
    table = _labelled(config, loaded, source, objects)
    columns = loaded.encode(table)
    bench = bench_of(config, loaded)
    answering = answering_of(config, loaded, table)
    return evaluation(bench, columns, None, batch_size=config.evaluation.batch_size, answering=answering)


def described(run: Path, out: Path, client: ClientId | None, group: str | None, adapter: Path, *, server: bool) -> None:
    """Write into an export how its model reads rows, for ``evaluate``.

    Parameters
    ----------
    run, out
        The run's folder, and that of the export.
    client, group, server
        Whose model it is.
    adapter
        The folder of the adapter in the run.
    """
    config, form, _ = base_of_run(run, adapter, client, group, server=server)
    about = {"format": 1, "config": resolved(config), "classes": list(form.classes)}
    write_bytes(out / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


def _model(
    target: Path, client: ClientId | None, group: str | None, objects: Mapping[str, Any], *, server: bool
) -> tuple[Config, Loaded]:
    about_file = target / ABOUT
    if not about_file.is_file() and is_run(target):  # a whole model has a config.json, too
        return trained(target, client, group, objects, server=server)
    if not about_file.is_file():
        raise RunError(
            f"{target}: is no run folder, and no export (it has no {ABOUT}); export a run with: "
            f"{command('export', 'RUN', '--out', 'FOLDER')}"
        )
    if client is not None or group is not None or server:
        raise RunError(f"{target}: is an export, which has one model; leave --client, --group and --server out")
    try:
        about = json.loads(about_file.read_text("utf-8"))
        config, classes = parse(about["config"]).with_objects(objects), tuple(about["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{about_file}: cannot be read ({error}); export again") from error
    if config.model.trust_remote_code:  # what is published must not choose which code its readers run
        raise RunError(
            f"{about_file}: asks for model.trust_remote_code, and an export may be anybody's; read the code of "
            f"'{config.model.name}', then evaluate the run folder that the export was made from"
        )
    return adapted(config, Form(classes, saved_features(target)), Rng(config.seed), target)


def _labelled(config: Config, loaded: Loaded, source: str, objects: Mapping[str, Any]) -> Table:
    """The rows of a source as the run reads its own, with labels in the order of the model's outputs."""
    features = loaded.reading.features
    columns = columns_of(config.with_objects(objects)) | {"group": None}  # whose rows they are does not matter
    columns |= {} if features is None else {"cells": features.wanted}
    try:
        table = load_table(source, **columns)
    except DataError as error:
        words = str(error).replace(f"data.source = '{source}'", f"--input '{source}'")
        raise DataError(words if words.startswith("--input") else f"--input '{source}': {words}") from error
    check_kind(config, table, "source", source)
    if TASKS[config.model.task].has_classes and loaded.outputs.classes:
        return with_classes(table, loaded.outputs.classes, f"--input '{source}'")
    return table
