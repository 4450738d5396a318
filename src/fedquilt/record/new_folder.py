"""Creation of a run folder, complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedquilt.core.disk import private_folder, sync_folder
from fedquilt.core.errors import RunError
from fedquilt.core.shell import command
from fedquilt.record.client_table import as_stored
from fedquilt.record.files import explained, write_json
from fedquilt.record.lock import LOCK, Hold, draft_of, holder
from fedquilt.record.manifest import FILES, FORMAT, Manifest, file_digest, write_manifest
from fedquilt.record.read import CONFIG, ENVIRONMENT, PARTITION, is_run

BEGUN = (CONFIG, ENVIRONMENT, PARTITION)
"""The files that every run folder holds from the start."""


def refuse_folder(folder: Path) -> None:
    """Raise RunError if no new run can be made in ``folder``: it is a file, or a folder that is not empty."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, not a folder; choose another output")
    if folder.is_dir() and any(folder.iterdir()):
        if who := holder(folder):
            raise RunError(f"{folder}: a run is there, and is being written by {who}; choose another name or output")
        resume = f"continue that run with: {command('run', '--resume', folder)}\nor " if is_run(folder) else ""
        raise RunError(f"{folder}: this folder exists and is not empty; {resume}choose another name or output")


def make_folder(
    folder: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    partition: Mapping[str, Any],
    held: Hold | None,
) -> None:
    """Make a run folder that holds the config, the environment and the partition.

    Parameters
    ----------
    folder
        The path of the run folder; until it is complete, a draft beside it is written.
    config, environment, partition
        The contents of its JSON files.
    held
        The lock on the draft, which is renamed with it.

    Raises
    ------
    RunError
        if the folder exists and is not empty, or cannot be written.
    """
    with explained(folder, lambda: "no run was started", "start the run again"):
        refuse_folder(folder)
        draft = draft_of(folder)
        draft.mkdir(parents=True, exist_ok=True)
        for left in draft.iterdir():
            if left.name != LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        private_folder(draft / FILES)  # clients' memories are private: only the owner may read them
        for name, value in zip(BEGUN, (config, {**environment, "format": FORMAT}, as_stored(partition)), strict=True):
            write_json(draft / name, value)
        write_manifest(draft, Manifest({name: file_digest(draft / name) for name in BEGUN}))
        sync_folder(draft)
        if folder.is_dir():
            folder.rmdir()
        held.move(folder) if held is not None else os.replace(draft, folder)
        sync_folder(folder.parent)
