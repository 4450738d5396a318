"""Finding a model's transformer blocks and its query and value projections from its structure."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedquilt.adapters.families import FAMILIES
from fedquilt.adapters.lora.module import is_linear
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks


def find_blocks(model: nn.Module) -> Blocks:
    """Find the list of transformer blocks: a module list of one class whose length is the config's number of layers.

    The config is that of the submodel that holds the list. Lists inside another such list (the experts of each block)
    do not count; in a multimodal model only the text model's lists do. If the config has no number of layers, every
    module list of one class is a candidate, and there must be exactly one.

    Raises
    ------
    ModelError
        if there is none or more than one such list; names the candidates.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _holds_blocks(module)
    }
    expected = _num_layers(_config_of(model))
    own = {name: _layers_above(model, name, expected) for name in lists}
    fitting = {name: module for name, module in lists.items() if own[name] in (None, len(module))}
    outer = [name for name in fitting if not any(name.startswith(other + ".") for other in fitting)]
    outer = _of_text(model, outer) or outer
    if len(outer) > 1:
        outer = [name for name in outer if len(fitting[name]) == expected] or outer
    if len(outer) == 1:
        return Blocks(outer[0], len(fitting[outer[0]]))
    kind = type(model).__name__
    count = "" if expected is None else f" of {expected} (the config's num_hidden_layers)"
    if outer and getattr(_config_of(model), "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} is an encoder-decoder: its blocks lie in several lists ({', '.join(outer)}), but fedquilt needs "
            "one; use an encoder or a decoder alone"
        )
    if outer:
        candidates = ", ".join(f"'{name}' ({len(fitting[name])})" for name in outer)
        raise ModelError(
            f"{kind} has several lists of blocks{count} that cannot be told apart: {candidates}; use a model with one"
        )
    candidates = ", ".join(f"'{name}' ({len(module)})" for name, module in lists.items()) or "none"
    raise ModelError(
        f"{kind} has no list of equal blocks{count}; its module lists of one class are: {candidates}. "
        "fedquilt needs a transformer whose blocks lie in one nn.ModuleList"
    )


def default_targets(model: nn.Module, blocks: Blocks) -> tuple[str, ...]:
    """The names of the query and value projections in the blocks (GPT-2: the joint one), or () if unknown.

    Of blocks without attention they are the two linear modules of the feed-forward part.
    """
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if blocks.depth(name) is not None and is_linear(module)
    }
    usual = (family[:1] + family[2:3] if family.query else family[-2:] for family in FAMILIES.values())
    return next((targets for own in usual if names.issuperset(targets := tuple(filter(None, own)))), ())


def _holds_blocks(modules: nn.ModuleList) -> bool:
    """Whether these are modules of one class with submodules, unlike lists of norms or embeddings."""
    return len({type(module) for module in modules}) == 1 and all(
        any(True for _ in module.children()) for module in modules
    )


def _layers_above(model: nn.Module, path: str, otherwise: int | None) -> int | None:
    """The number of layers in the nearest config above this path, since each submodel may have its own."""
    while path:
        path = path.rpartition(".")[0]
        number = getattr(_config_of(model.get_submodule(path)), "num_hidden_layers", None)
        if isinstance(number, int):
            return number
    return otherwise


def _of_text(model: nn.Module, paths: list[str]) -> list[str]:
    """The lists that lie in the text model of a multimodal model."""
    text = getattr(_config_of(model), "text_config", None)
    parts = [name for name, module in model.named_modules() if text is not None and _config_of(module) is text]
    return [path for path in paths if any(path.startswith(f"{part}.") for part in parts)]


def _config_of(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _num_layers(config: Any) -> int | None:
    """The number of hidden layers in the config, or in its text config, or None."""
    for part in (config, getattr(config, "text_config", None)):
        number = getattr(part, "num_hidden_layers", None)
        if isinstance(number, int):
            return number
    return None
