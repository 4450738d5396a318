"""A whole model as files: trained, and in all else as it came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CONFIG = ("use_cache", "pad_token_id", "problem_type")
_TOKENIZER = ("padding_side", "truncation_side", "pad_token")


@dataclass(frozen=True)
class AsItCame:
    """What a model's files say of themselves and training does not need: the config's keys, the tokenizer's, how a
    language model is to write, and the type of the weights (None for the one that they have here)."""

    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    generation: Any = None
    dtype: torch.dtype | None = None

    @contextmanager
    def restored(self, model: Any, tokenizer: Any) -> Iterator[dict[str, Tensor]]:
        """The tensors to be written, in a context in which model and tokenizer are otherwise as they came."""
        now = [(owner, {key: getattr(owner, key) for key in keys}) for owner, keys in self._kept(model, tokenizer)]
        try:
            for owner, keys in self._kept(model, tokenizer):
                _set(owner, keys)
            yield _in_dtype(model, self.dtype)
        finally:
            for owner, values in now:
                _set(owner, values)

    def mark(self, folder: Path) -> None:
        """Let the config in the folder say what the weights beside it are: it was written by their type in memory."""
        if self.dtype is not None:
            path = folder / "config.json"
            told = json.loads(path.read_text("utf-8"))
            told["dtype"] = str(self.dtype).removeprefix("torch.")
            path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")

    def _kept(self, model: Any, tokenizer: Any) -> list[tuple[Any, Mapping[str, Any]]]:
        kept = [(model.config, self.config), (tokenizer, {} if tokenizer is None else self.tokenizer)]
        return [*kept, (model, {} if self.generation is None else {"generation_config": self.generation})]


UNCHANGED = AsItCame()
"""Of a model of which nothing was changed for training."""


def as_it_came(model: Any, task: str, tokenizer: Any, dtype: Any) -> AsItCame:
    """What the model's and the tokenizer's (None for no) files say; asked before anything of these is changed.

    ``dtype`` is what the model's config says.
    """
    config = {key: getattr(model.config, key) for key in _CONFIG if hasattr(model.config, key)}
    tokens = {} if tokenizer is None else {key: getattr(tokenizer, key) for key in _TOKENIZER}
    if task != "causal-lm":
        # a classifier of batches needs to know its padding; and what it was trained for here is one class a row
        for keys, key in ((config, "pad_token_id"), (tokens, "pad_token")):
            keys.pop(key, None)
        config |= {"problem_type": None} if "problem_type" in config else {}
    own = deepcopy(getattr(model, "generation_config", None))
    here = next(model.parameters()).dtype
    return AsItCame(config, tokens, own, dtype if isinstance(dtype, torch.dtype) and dtype != here else None)


def _in_dtype(model: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The model's tensors, numbers in ``dtype`` where they fit into it; tensors that are one stay one."""
    tensors: dict[str, Tensor] = model.state_dict()
    if dtype is None:
        return tensors
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, tensor in tensors.items():
        key = tensor.data_ptr(), tensor.shape
        if key not in made:
            short = tensor.to(dtype) if tensor.is_floating_point() else tensor
            made[key] = short if bool(torch.isfinite(short).all()) else tensor
        tensors[name] = made[key]
    return tensors


def _set(owner: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        setattr(owner, key, value)
