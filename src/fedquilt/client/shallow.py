"""Temporary removal of transformer blocks from a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from fedquilt.client.model_config import configs_of, set_until
from fedquilt.core.types import Blocks


@contextmanager
def only_blocks(model: nn.Module, blocks: Blocks, keep: Collection[int]) -> Iterator[nn.Module]:
    """Reduce ``model`` to the blocks in ``keep``, in increasing order, until the context ends.

    Inside, the model computes the same as one built with only these blocks: the block list, the layer count and the
    per-layer lists of the config, and each block's own index are adjusted. The remaining blocks have new names inside
    (block 5 of ``keep={2, 5}`` is number 1), so that parameters must be looked up before. The model must not be used
    elsewhere at the same time.

    Raises
    ------
    ValueError
        if ``keep`` is empty, repeats an index, or holds one that is not in ``[0, num_layers)``.
    """
    chosen = sorted(keep)
    if not chosen or len(set(chosen)) != len(chosen) or chosen[0] < 0 or chosen[-1] >= blocks.num_layers:
        raise ValueError(
            f"blocks to keep are {chosen}; give distinct indices from 0 to {blocks.num_layers - 1}, at least one"
        )
    whole = model.get_submodule(blocks.path)
    assert isinstance(whole, nn.ModuleList)
    parent_path, _, name = blocks.path.rpartition(".")
    with ExitStack() as undo:
        # the undoing of every change is registered at once, so that a failure half-way leaves the model unchanged
        kept = nn.ModuleList(whole[index] for index in chosen)
        kept.training = whole.training
        set_until(undo, model.get_submodule(parent_path), name, kept)
        for config in configs_of(model):
            _shorten(undo, config, blocks.num_layers, chosen)
        for new, old in enumerate(chosen):
            for module in whole[old].modules():
                if getattr(module, "layer_idx", None) == old:  # the index in a key-value cache, and in GPT-2's scaling
                    set_until(undo, module, "layer_idx", new)
        yield model


def _shorten(undo: ExitStack, config: Any, num_layers: int, chosen: list[int]) -> None:
    if getattr(config, "num_hidden_layers", None) != num_layers:
        return
    set_until(undo, config, "num_hidden_layers", len(chosen))
    for key, value in list(vars(config).items()):
        # lists with one entry per block, such as layer_types, mlp_layer_types and no_rope_layers
        if "layer" in key and isinstance(value, list | tuple) and len(value) == num_layers:
            set_until(undo, config, key, type(value)(value[index] for index in chosen))
