"""A model of two parts, whose logits are averaged: how it is saved and loaded.

The folder has a folder for each part, which is plain LoRA in PEFT's format and can be loaded alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedquilt.adapters.common.module import PARTS
from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.lora.peft_files import load_peft
from fedquilt.core.errors import ModelError

PARTS_FILE = "fedquilt_parts.json"
"""The file that names the folders of the parts."""


class MeanOfParts(nn.Module):
    """Two models as one, whose logits are the weighted mean of theirs; all else of the output is the first one's.

    They may share the storage of weights. ``weight`` is that of the first one.
    """

    def __init__(self, first: nn.Module, second: nn.Module, weight: float) -> None:
        super().__init__()
        self.parts, self.weight = nn.ModuleList([first, second]), weight
        self.config = first.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first model's output, with the mean of both models' logits."""
        first, second = (part(*args, **kwargs) for part in self.parts)
        first.logits = torch.lerp(second.logits, first.logits, self.weight)
        return first


def save_parts(folder: Path, write: Callable[[Path, str], None], weight: float) -> None:
    """Write a folder with a folder for each part; an existing folder is replaced.

    ``write(folder, part)`` writes one part, and ``weight`` is that of the common one, from 0 to 1.

    Raises
    ------
    RunError
        if the folder cannot be written.
    """

    def fill(fresh: Path) -> None:
        for part in PARTS:
            write(fresh / part, part)
        common = min(max(weight, 0.0), 1.0)
        weights = dict(zip(PARTS, (common, 1 - common), strict=True))
        (fresh / PARTS_FILE).write_text(json.dumps({"weights": weights}) + "\n", "utf-8")

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
    weight, second = _weight(folder), copy.deepcopy(model, shared)
    for part, own in zip(PARTS, (model, second), strict=True):
        load(own, folder / part)
    return MeanOfParts(model, second, weight)


def _weight(folder: Path) -> float:
    """The common part's weight, as the folder's file says."""
    try:
        weight = float(json.loads((folder / PARTS_FILE).read_text("utf-8"))["weights"][PARTS[0]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / PARTS_FILE} is damaged; export the run again") from error
    if not 0 <= weight <= 1:
        raise ModelError(f"{folder / PARTS_FILE}: a weight is {weight}; it must be from 0 to 1")
    return weight
