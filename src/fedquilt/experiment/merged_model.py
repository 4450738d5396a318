"""Export of a run's adapter merged into its base, as a whole model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fedquilt.adapters.common.parts import PARTS_FILE
from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.lora.inject import adapters, remove
from fedquilt.adapters.lora.module import merged_weights
from fedquilt.adapters.mixture.inject import folded_weights, mixtures, remove_mixture
from fedquilt.adapters.registry import KINDS
from fedquilt.core.errors import ModelError, RunError
from fedquilt.core.types import ClientId
from fedquilt.experiment.base_of_run import base_of_run, plain_base
from fedquilt.experiment.export import adapter_folder, export
from fedquilt.models.saved_adapter import load_adapter


def export_merged(
    run: Path, out: Path, client: ClientId | None = None, group: str | None = None, *, server: bool = False
) -> Path:
    """Write the model of a run's last checkpoint as a folder that ``from_pretrained`` reads, without adapters.

    A quantised base is dequantised: the weights are those that the run's passes computed with, in ``model.dtype``, plus
    what the adapter adds, rounded once.

    Parameters
    ----------
    run, out
        The run's folder, and the folder to write.
    client, group
        The client, or the label of the group; None for the global model.
    server
        Whether the model that the server owns is meant.

    Raises
    ------
    FedquiltError
        RunError as ``export`` does, or if ``out`` is not empty; ModelError if the adapter is a mixture that is not
        linear, or has two parts, so that no weights compute what it does, or if the base cannot be loaded.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"--out {out}: is not an empty folder; give a new one, since a whole model is never overwritten")
    folder = adapter_folder(run, client, group, server=server)
    config, form, rng = base_of_run(run, folder, client, group, server=server)
    if KINDS[config.adapter.kind].trains_base:
        return export(run, out, client, group, server=server)
    if (folder / PARTS_FILE).is_file():
        raise ModelError(
            "--merged: the adapter has two parts whose logits are averaged (adapter.parts = 'apart'), and no weights "
            "compute that; export without --merged, or merge one of its parts with PEFT"
        )
    loaded = plain_base(config, form, rng)
    _merge(load_adapter(loaded.model, folder, blocks=loaded.blocks))
    replace_folder(out.resolve(), loaded.save, "model")
    return out


def _merge(model: nn.Module) -> None:
    """Merge the adapters in the model into its weights and remove them, in place."""
    weights = {**merged_weights(adapters(model)), **folded_weights(mixtures(model))}
    remove(model)
    if mixtures(model):
        remove_mixture(model)
    own = dict(model.named_parameters())
    for name, weight in weights.items():
        own[name].data = weight.contiguous()
