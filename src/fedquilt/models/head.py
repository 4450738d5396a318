"""The head of a classifier: finding its parameters, and initialising it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.layers import find_blocks


def outside_base(model: Any) -> list[str]:
    """The names of the parameters outside the base model: those of the head."""
    base = _base_of(model)
    return [name for name, _ in model.named_parameters() if not name.startswith(base + ".")]


def _base_of(model: Any) -> str:
    """The path of the base model within the task's model.

    Its class names it, or else it is the submodule with the blocks, if that is a pretrained model of its own.
    """
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix):
        return str(prefix)
    part = find_blocks(model).path.partition(".")[0]
    if not hasattr(model.get_submodule(part), "base_model_prefix"):
        raise ModelError(
            f"{type(model).__name__} does not separate its base model from its head; use a model that does"
        )
    return part


def head_of(name: str, model: Any, missing: Collection[str]) -> tuple[str, ...]:
    """The parameters that a classifier trains beside its adapters.

    These are all parameters outside the base model, and a pooler that is ``missing`` from the weights. ``name`` is the
    name of the model, for messages.
    """
    outside = set(outside_base(model))
    if not outside:
        raise ModelError(f"model '{name}': {type(model).__name__} has no classification head")
    return tuple(
        name for name, _ in model.named_parameters() if name in outside or (name in missing and ".pooler." in name)
    )


def resize(config: Any, num_outputs: int | None) -> bool:
    """Give the config this number of outputs, one per class; whether it had another. None changes nothing."""
    if num_outputs is None or config.num_labels == num_outputs:
        return False
    config.num_labels = num_outputs
    return True


def sized_by_classes(model: Any, head: Collection[str], build: Callable[[Any], Any]) -> set[str]:
    """The head's parameters whose shape depends on the number of classes; ``build(config)`` makes such a model."""
    config = deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        other = dict(build(config).named_parameters())
    own = dict(model.named_parameters())
    return {name for name in head if name not in other or other[name].shape != own[name].shape}


def check_body(name: str, model: nn.Module, lacking: Collection[str]) -> None:
    """Raise ModelError if parameters of ``model`` are among ``lacking``, those outside the head without weights.

    Raises
    ------
    ModelError
        gives their number and the first of them.
    """
    lost = [own for own, _ in model.named_parameters() if own in lacking]
    if lost:
        raise ModelError(
            f"model '{name}': its weights lack {len(lost)} of the tensors that {type(model).__name__} needs, "
            f"or hold them in another shape, such as '{lost[0]}'; the files belong to another architecture or task"
        )


def draw(model: Any, names: list[str], rng: Rng) -> None:
    """Initialise these parameters, each module from its own stream: weights N(0, initializer_range), biases 0."""
    std = getattr(model.config, "initializer_range", 0.02)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(path)
        with rng.child(path).scope(), torch.no_grad():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, std)
                if module.bias is not None:
                    module.bias.zero_()
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()
