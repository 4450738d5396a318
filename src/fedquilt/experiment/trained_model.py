"""Loading the model of a run with its trained adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load_file
from torch import nn

from fedquilt.adapters.registry import KINDS
from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId
from fedquilt.experiment.base_of_run import base_of_run
from fedquilt.experiment.export import adapter_folder
from fedquilt.experiment.models import Form, load
from fedquilt.models.loaded import Loaded
from fedquilt.models.own import WEIGHTS, undressed
from fedquilt.models.saved_adapter import load_adapter


def trained_model(
    run: Path,
    client: ClientId | None = None,
    group: str | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
    *,
    server: bool = False,
) -> nn.Module:
    """The model of a run's group, of one of its clients or of its server, with the adapter of the last checkpoint.

    For a finished run neither data nor checkpoint is needed.

    Parameters
    ----------
    run
        The run's folder.
    client, group
        The client, or the label of the group; None for the global model.
    objects
        ``Config.objects``; a model object of the calling program is copied.
    server
        Whether the model that the server owns is meant.

    Raises
    ------
    FedquiltError
        RunError as ``export.export`` does, ModelError if the base cannot be loaded.
    """
    _, loaded = trained(run, client, group, objects, server=server)
    return undressed(loaded.model)


def trained(
    run: Path,
    client: ClientId | None = None,
    group: str | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
    *,
    server: bool = False,
) -> tuple[Config, Loaded]:
    """The config of a run's group, client or server, and its model with the adapter of the last checkpoint.

    Parameters
    ----------
    run, client, group, objects, server
        As for ``trained_model``.
    """
    folder = adapter_folder(run, client, group, objects, server=server)
    return adapted(*base_of_run(run, folder, client, group, objects, server=server), folder)


def adapted(config: Config, form: Form, rng: Rng, folder: Path) -> tuple[Config, Loaded]:
    """The config, and its model with the adapter in a folder, or the whole model that the folder holds.

    Parameters
    ----------
    config, form, rng
        What ``load`` needs for the base.
    folder
        The folder of an adapter, or of a model.
    """
    whole = (folder / "config.json").exists()  # the folder is a model of transformers
    if not KINDS[config.adapter.kind].trains_base and not whole:
        loaded = load(config, form, rng)
        return config, replace(loaded, model=load_adapter(loaded.model, folder, blocks=loaded.blocks).eval())
    if whole:
        saved = config.model_copy(update={"model": replace(config.model, name=str(folder), revision=None)})
        return config, load(saved, form, rng)
    loaded = load(config, form, rng)
    loaded.model.load_state_dict(load_file(folder / WEIGHTS))
    return config, loaded
