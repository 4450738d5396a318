"""Reading and writing mixtures of adapters.

The folder holds ``adapter.safetensors`` and ``fedquilt_adapter.json``. The tensors have the names of the parameters in
a model with the mixture in it: ``<module>.down`` (r, d), ``<module>.up`` (d, r), ``<module>.gate``,
``mixture.<part>.<slot>.<branch>`` (r, r), and the head's own names.
The JSON object has

    format, version       "fedquilt-mixture" and 1
    base_model, task      the fine-tuned model and its task
    architecture          its type and size, for information
    num_layers            the number of its transformer blocks
    settings              every field of ``MixtureSettings``
    head                  the names of the tensors of the head
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedquilt.adapters.folders import read_folder, write_folder
from fedquilt.adapters.lora.inject import load
from fedquilt.adapters.mixture.inject import inject_mixture, mixture_layout, remove_mixture
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.model_card import beside
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.shell import command
from fedquilt.core.types import Blocks, Layout, Params

TENSORS, CONFIG = "adapter.safetensors", "fedquilt_adapter.json"
FORMAT, VERSION = "fedquilt-mixture", 1


class SavedMixture(NamedTuple):
    """Content of a folder: tensors by name, settings, number of blocks, and the names of the head's tensors."""

    params: Params
    settings: MixtureSettings
    num_layers: int
    head: tuple[str, ...]


def save_mixture(
    folder: str | Path,
    params: Mapping[str, Tensor],
    layout: Layout,
    settings: MixtureSettings,
    *,
    base_name: str,
    task: str,
    head: Collection[str] = (),
    classes: Sequence[str] = (),
) -> Path:
    """Write a mixture as a folder, atomically; returns the folder.

    Parameters
    ----------
    folder : the folder; an existing one is replaced.
    params : every tensor of the layout, and any of ``head``.
    layout : the trained tensors.
    settings : the settings of the mixture.
    base_name : the pretrained model, as it is loaded.
    task : what it is fine-tuned for, such as ``"causal-lm"``.
    head : the names of the head's tensors.
    classes : the names of the classes in the order of the outputs.

    Raises
    ------
    ModelError
        if a tensor is missing, is neither in the layout nor of the head, or has another shape than in the layout.
    RunError
        if the folder cannot be written.
    """
    folder = Path(folder)
    if missing := sorted(layout.depth.keys() - params.keys()):
        raise ModelError(f"tensor '{missing[0]}' of {layout.architecture} is missing; a mixture is saved whole")
    kept = layout.head | set(head)
    for name, tensor in params.items():
        if name not in layout.depth and name not in kept:
            raise ModelError(f"'{name}' is not a tensor of {layout.architecture}")
        if name in layout.shapes and tuple(tensor.shape) != tuple(layout.shapes[name]):
            raise ModelError(f"tensor '{name}' is {tuple(tensor.shape)}, not {tuple(layout.shapes[name])}")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "base_model": base_name,
        "task": task,
        "architecture": layout.architecture,
        "num_layers": layout.num_layers,
        "settings": asdict(settings),
        "head": sorted(name for name in params if name in kept),
    }
    write_folder(folder, (TENSORS, params), (CONFIG, config), beside(base_name, task, classes, peft=False))
    return folder


def read_mixture(folder: str | Path) -> SavedMixture:
    """The mixture that ``save_mixture`` wrote.

    Raises
    ------
    ModelError
        if a file is missing or damaged, or of another format or version.
    """
    folder = Path(folder)
    config, params = read_folder(folder, TENSORS, CONFIG, f"export the adapter again: {command('export', 'RUN')}")
    if (config.get("format"), config.get("version")) != (FORMAT, VERSION):
        raise ModelError(
            f"{folder / CONFIG}: format is {config.get('format')!r}, version {config.get('version')!r}; this fedquilt "
            f"reads {FORMAT!r}, version {VERSION}"
        )
    try:
        given: dict[str, Any] = dict(config["settings"])
        settings = MixtureSettings(**{**given, "sites": tuple(given["sites"])})
        num_layers, head = int(config["num_layers"]), tuple(map(str, config["head"]))
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise ModelError(f"{folder / CONFIG} is wrong: {error}") from error
    ranks = {len(tensor) for name, tensor in params.items() if name.endswith(".down") and tensor.dim() == 2}
    if ranks != {settings.rank} or settings.branches * settings.num_slots > len(params):
        raise ModelError(
            f"{folder / CONFIG}: says rank {settings.rank}, {settings.num_slots} slots and {settings.branches} "
            f"branches, which is not what the {len(params)} tensors beside it are of"
        )
    return SavedMixture(params, settings, num_layers, head)


def put_mixture(model: nn.Module, blocks: Blocks, saved: SavedMixture, folder: str | Path) -> None:
    """Put a saved mixture and its head into a model without adapters, in place; no parameter then requires a gradient.

    Raises
    ------
    ModelError
        if names or shapes are not those of this model, which is then unchanged.
    """
    parameters = dict(model.named_parameters())
    for name in saved.head:
        if name not in parameters:
            raise ModelError(f"{folder}: the head's tensor '{name}' is not in {type(model).__name__}")
    if blocks.num_layers != saved.num_layers:
        raise ModelError(
            f"{folder}: is of a model of {saved.num_layers} blocks, and this {type(model).__name__} has "
            f"{blocks.num_layers}; load the model that it was made with"
        )
    inject_mixture(model, blocks, saved.settings)
    where = mixture_layout(model, blocks, type(model).__name__, saved.head)
    try:
        _fit(folder, saved.params, where)
    except ModelError:
        remove_mixture(model)
        raise
    load(dict(model.named_parameters()), saved.params)


def _fit(folder: str | Path, params: Mapping[str, Tensor], layout: Layout) -> None:
    for name in sorted(params.keys() ^ layout.depth.keys()):
        where = "is not in the model" if name in params else "is missing"
        raise ModelError(f"{folder}: tensor '{name}' {where} ({layout.architecture}); the adapter is of another model")
    for name, tensor in params.items():
        if tuple(tensor.shape) != tuple(layout.shapes[name]):
            raise ModelError(
                f"{folder}: tensor '{name}' is {tuple(tensor.shape)}, the model's is {tuple(layout.shapes[name])}"
            )
