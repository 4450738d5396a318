"""Saving a whole model: trained weights with otherwise the original config, tokenizer and generation settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedquilt.core.tasks import TASKS
from fedquilt.models.hf_files import PREPROCESSOR, quiet

_CONFIG = ("use_cache", "pad_token_id", "problem_type")
_TOKENIZER = ("padding_side", "truncation_side", "pad_token")


@dataclass(frozen=True)
class AsItCame:
    """Settings of a model's files that training overrides, to be restored when the model is saved.

    ``config`` and ``tokenizer`` hold their attributes, ``generation`` the generation config; ``dtype`` is the type of
    the weights in the files, None if it is the same as in memory.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    generation: Any = None
    dtype: torch.dtype | None = None

    @contextmanager
    def restored(self, model: Any, tokenizer: Any) -> Iterator[dict[str, Tensor]]:
        """The tensors to be written, in a context in which model and tokenizer have their original settings."""
        now = [(owner, {key: getattr(owner, key) for key in keys}) for owner, keys in self._kept(model, tokenizer)]
        try:
            for owner, keys in self._kept(model, tokenizer):
                _set(owner, keys)
            yield _in_dtype(model, self.dtype)
        finally:
            for owner, values in now:
                _set(owner, values)

    def mark(self, folder: Path) -> None:
        """Correct the dtype in the folder's config, which was written with the type of the weights in memory."""
        if self.dtype is not None:
            path = folder / "config.json"
            config = json.loads(path.read_text("utf-8"))
            config["dtype"] = str(self.dtype).removeprefix("torch.")
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")

    def _kept(self, model: Any, tokenizer: Any) -> list[tuple[Any, Mapping[str, Any]]]:
        kept = [(model.config, self.config), (tokenizer, {} if tokenizer is None else self.tokenizer)]
        return [*kept, (model, {} if self.generation is None else {"generation_config": self.generation})]


UNCHANGED = AsItCame()
"""For a model of which nothing was changed for training."""


def as_it_came(model: Any, task: str, tokenizer: Any, dtype: Any) -> AsItCame:
    """Take down the settings of a model and its tokenizer (None for no tokenizer) before training changes them.

    ``dtype`` is the type of the weights in the model's config.
    """
    config = {key: getattr(model.config, key) for key in _CONFIG if hasattr(model.config, key)}
    tokens = {} if tokenizer is None else {key: getattr(tokenizer, key) for key in _TOKENIZER}
    if TASKS[task].has_classes:
        # a classifier needs its padding token for batches; and it was trained for one class per row
        for keys, key in ((config, "pad_token_id"), (tokens, "pad_token")):
            keys.pop(key, None)
        config |= {"problem_type": None} if "problem_type" in config else {}
    own = deepcopy(getattr(model, "generation_config", None))
    here = next(model.parameters()).dtype
    return AsItCame(config, tokens, own, dtype if isinstance(dtype, torch.dtype) and dtype != here else None)


def _in_dtype(model: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The model's tensors, floating-point ones in ``dtype`` if no value overflows; shared tensors stay shared."""
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


def save_model(
    model: Any,
    folder: Path,
    *,
    tokenizer: Any = None,
    preprocessor: Mapping[str, Any] = MappingProxyType({}),
    came: AsItCame = UNCHANGED,
) -> None:
    """Write a whole model with safetensors weights into a folder that ``load_model`` reads.

    Parameters
    ----------
    model, tokenizer
        The model, and its tokenizer if it has one.
    folder
        The folder to write.
    preprocessor
        The content of preprocessor_config.json; no file if empty.
    came
        The original settings, which are written in place of those for training.
    """
    with quiet(), came.restored(model, tokenizer) as tensors:
        model.save_pretrained(folder, state_dict=tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    came.mark(folder)
    if preprocessor:
        (folder / PREPROCESSOR).write_text(json.dumps(dict(preprocessor), indent=2) + "\n", "utf-8")
