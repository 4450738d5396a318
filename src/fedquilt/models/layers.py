"""Where a model's transformer blocks and its query and value projections are, found from its structure."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedquilt.adapters.lora import is_linear
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks

# the usual first choice of query and value projections, by how model families name them
_QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("qkv",),
    ("Wqkv",),
)


def find_blocks(model: nn.Module) -> Blocks:
    """The list of transformer blocks of ``model``: a module list of one class, as long as its config says.

    Lists inside another such list (the experts of each block) do not count. Without a number of layers in the config
    any module list of one class is a candidate, and there must be exactly one.

    Raises
    ------
    ModelError
        if there is no such list, or several; names the candidates.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _holds_blocks(module)
    }
    expected = _num_layers(getattr(model, "config", None))
    fitting = {name: module for name, module in lists.items() if expected is None or len(module) == expected}
    outer = [name for name in fitting if not any(name.startswith(other + ".") for other in fitting)]
    if len(outer) == 1:
        return Blocks(outer[0], len(fitting[outer[0]]))
    kind = type(model).__name__
    count = "" if expected is None else f" of {expected} (the config's num_hidden_layers)"
    if outer:
        told = ", ".join(f"'{name}' ({len(fitting[name])})" for name in outer)
        raise ModelError(
            f"{kind} has several lists of blocks{count} that cannot be told apart: {told}; use a model with one"
        )
    told = ", ".join(f"'{name}' ({len(module)})" for name, module in lists.items()) or "none"
    raise ModelError(
        f"{kind} has no list of equal blocks{count}; its module lists of one class are: {told}. "
        "fedquilt needs a transformer whose blocks lie in one nn.ModuleList"
    )


def default_targets(model: nn.Module, blocks: Blocks) -> tuple[str, ...]:
    """Names of the query and value projections in the blocks (GPT-2: their joint one), or () if unknown."""
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if blocks.depth(name) is not None and is_linear(module)
    }
    return next((targets for targets in _QUERY_VALUE if names.issuperset(targets)), ())


def _holds_blocks(modules: nn.ModuleList) -> bool:
    """Whether these are modules of one class, made of others: a list of norms or embeddings is no list of blocks."""
    return len({type(module) for module in modules}) == 1 and all(
        any(True for _ in module.children()) for module in modules
    )


def _num_layers(config: Any) -> int | None:
    """The config's own number of hidden layers, that of its text part for a model of several, or None."""
    for part in (config, getattr(config, "text_config", None)):
        number = getattr(part, "num_hidden_layers", None)
        if isinstance(number, int):
            return number
    return None
