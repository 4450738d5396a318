"""A model of two parts, whose logits are averaged: how it is saved and loaded.

The folder has a folder for each part, which is plain LoRA in PEFT's format and can be loaded alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fedquilt.adapters.common.module import PARTS
from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.lora.peft_files import load_peft
from fedquilt.core.errors import ModelError

PARTS_FILE = "fedquilt_parts.json"
"""The file that names the folders of the parts."""


class MeanOfParts(nn.Module):
    """Several models as one, whose logits are the mean of theirs; all else of the output is the first one's.

    They may share the storage of weights.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.config = parts[0].config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first part's output, with the mean of all parts' logits."""
        first, *others = (part(*args, **kwargs) for part in self.parts)
        first.logits = sum((other.logits for other in others), first.logits) / len(self.parts)
        return first


def save_parts(folder: Path, write: Callable[[Path, str], None]) -> None:
    """Write a folder with a folder for each part; ``write(folder, part)`` writes one. An existing folder is replaced.

    Raises
    ------
    RunError
        if the folder cannot be written.
    """

    def fill(fresh: Path) -> None:
        for part in PARTS:
            write(fresh / part, part)
        (fresh / PARTS_FILE).write_text(json.dumps({"parts": PARTS}) + "\n", "utf-8")

    replace_folder(folder, fill)


def load_parts(model: nn.Module, folder: Path, load: Callable[[nn.Module, Path], None]) -> MeanOfParts:
    """The model that averages the logits of the parts in a folder; ``load(model, folder)`` loads one of them.

    The first part is loaded into ``model`` itself, and the other into a copy that shares the base's weights with it.

    Raises
    ------
    ModelError
        if a part is missing, or damaged, or the model is not one of transformers' own.
    """
    if "forward" in vars(model):
        raise ModelError(f"{folder} has two parts, which only models of transformers can be given")
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise ModelError(f"{folder} has a file {PARTS_FILE}, and no folder '{missing[0]}'; export the run again")
    loaded = {name for part in PARTS for name in load_peft(folder / part)[0]}
    shared: dict[int, Any] = {id(own): own for name, own in model.named_parameters() if name not in loaded}
    both = [model, copy.deepcopy(model, shared)]
    for part, own in zip(PARTS, both, strict=True):
        load(own, folder / part)
    return MeanOfParts(both)
