"""The base model of a run, read from the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedquilt.config.groups import Part, parts, server_parts
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId
from fedquilt.experiment.models import Form, load
from fedquilt.models.features import saved_features
from fedquilt.models.loaded import Loaded
from fedquilt.models.quantization import dequantize
from fedquilt.record import read_config, read_environment


def plain_base(config: Config, form: Form, rng: Rng) -> Loaded:
    """The base without quantisation: the weights that the run's passes computed with, in ``model.dtype``."""
    loaded = load(config.model_copy(update={"model": replace(config.model, quantization="none")}), form, rng)
    dequantize(loaded.model, loaded.blocks, config.model.quantization)
    return loaded


def base_of_run(
    run: Path,
    folder: Path,
    client: ClientId | None,
    group: str | None,
    objects: Mapping[str, Any] = MappingProxyType({}),
    *,
    server: bool = False,
) -> tuple[Config, Form, Rng]:
    """What ``load`` needs for the base of a run's group, client or server: its config, its form, and the stream.

    Parameters
    ----------
    run, folder
        The run's folder, and the one in it with the trained adapter.
    client, group
        The client, or the label of the group.
    objects
        ``Config.objects``.
    server
        Whether the model that the server owns is meant.
    """
    whole = parse(read_config(run)).with_objects(objects)
    part = server_parts(whole)[0] if server else part_of(whole, client, group)
    # in the order of the model's outputs
    classes = tuple(read_environment(run).get("outputs", {}).get(part.label, {}).get("classes", ()))
    return part.config, Form(classes, saved_features(folder)), Rng(whole.seed)


def part_of(config: Config, client: ClientId | None, label: str | None) -> Part:
    """The part of a config that a client, or the group of this label, has; the first one for None."""
    groups = parts(config)
    if client is not None:
        return next(part for part in groups if client in part.ids)
    return next((part for part in groups if part.label == label), groups[0])
