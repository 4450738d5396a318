"""Folders of tensors beside a JSON file that describes them: written atomically, read without pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedquilt.core.disk import sync_folder, sync_tree
from fedquilt.core.errors import ModelError, RunError
from fedquilt.core.types import Params

MOST_BYTES = 2**23
"""Largest size of the JSON file."""


def write_folder(
    folder: Path,
    tensors: tuple[str, Mapping[str, Tensor]],
    config: tuple[str, Mapping[str, Any]],
    beside: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a folder of a file of tensors, a JSON file and other texts, atomically; an existing folder is replaced.

    ``tensors`` and ``config`` are each a file's name and content; ``beside`` maps further file names to texts.

    Raises
    ------
    RunError
        if the folder cannot be written.
    """

    def fill(fresh: Path) -> None:
        content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors[1].items()}
        save_file(content, fresh / tensors[0], metadata={"format": "pt"})
        (fresh / config[0]).write_text(json.dumps(config[1], indent=2, sort_keys=True) + "\n", "utf-8")
        for name, text in beside.items():
            (fresh / name).write_text(text, "utf-8")

    replace_folder(folder, fill)


def replace_folder(folder: Path, fill: Callable[[Path], None], what: str = "adapter") -> None:
    """Write a folder by calling ``fill`` on a new one; an existing folder is replaced once all data is on the disk.

    If the process is interrupted, the old folder survives under its own name or, between the two steps of the
    replacement, as ``.NAME.old`` beside it, from where the next call restores it. ``what`` names the content in error
    messages.

    Raises
    ------
    RunError
        if the folder cannot be written.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    stale = folder.with_name(f".{folder.name}.old")
    try:
        if stale.exists() and not folder.exists():
            stale.rename(folder)
        for leftover in (fresh, stale):
            if leftover.exists():
                shutil.rmtree(leftover)
        fresh.mkdir(parents=True)
        fill(fresh)
        sync_tree(fresh)
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
        sync_folder(folder.parent)
        if stale.exists():
            shutil.rmtree(stale)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)  # free the space again: the disk may be full
        raise RunError(
            f"cannot write the {what} folder {folder}: {error}; free the disk or choose another folder"
        ) from error


def read_folder(folder: Path, tensors: str, config: str, advice: str) -> tuple[dict[str, Any], Params]:
    """The JSON object of the file ``config`` and the tensors of the file ``tensors``.

    ``advice`` is the end of the error message if one of the files is missing.

    Raises
    ------
    ModelError
        if the folder or a file is missing or damaged.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no adapter folder {folder}")
    for name in (config, tensors):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no {name}; {advice}")
    try:
        with (folder / config).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ModelError(f"{folder / config} is larger than {MOST_BYTES:,} bytes, more than any adapter needs")
        description = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / config} cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise ModelError(f"{folder / config} holds no JSON object")
    try:
        return description, load_file(folder / tensors)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / tensors} is damaged: {error}; save it again") from error
