"""Temporary changes of a model's configs: one for the model, and often others for its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


def configs_of(model: nn.Module) -> list[Any]:
    """The distinct config objects of the model and of its parts."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


def set_until(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of ``owner`` until ``undo`` ends."""
    restore: Callable[..., None] = setattr
    undo.callback(restore, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def forward_until(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a module run ``forward`` until ``undo`` ends."""
    own = vars(module).get("forward")  # a tool may have put one before the class's
    undo.callback(*((delattr, module, "forward") if own is None else (setattr, module, "forward", own)))
    module.forward = forward


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let no part of the model cache keys and values, which only generation needs, until the context ends.

    A cache would be filled again by blocks that run again, and keeps packed examples from being told apart.
    """
    with ExitStack() as undo:
        for config in configs_of(model):
            if getattr(config, "use_cache", False):
                set_until(undo, config, "use_cache", False)
        yield
