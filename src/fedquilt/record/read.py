"""What is in a run folder, read back. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedquilt.core.errors import RunError

CONFIG, ENVIRONMENT, PARTITION, RESULT = "config.json", "environment.json", "partition.json", "result.json"
ROUNDS = "rounds.jsonl"


def read_config(folder: str | Path) -> dict[str, Any]:
    """The resolved config that the run was started with.

    Raises
    ------
    RunError
        if the folder holds no run.
    """
    return read_json(Path(folder), CONFIG)


def read_environment(folder: str | Path) -> dict[str, Any]:
    """Versions, device and time of the run."""
    return read_json(Path(folder), ENVIRONMENT)


def read_partition(folder: str | Path) -> dict[str, Any]:
    """Which rows each client had, and its labels, budget and architecture."""
    return read_json(Path(folder), PARTITION)


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The run's result, or None if it is not finished."""
    if not (Path(folder) / RESULT).exists():
        read_config(folder)  # an unfinished run is one thing, a folder without a run another
        return None
    return read_json(Path(folder), RESULT)


def read_rounds(folder: str | Path) -> list[dict[str, Any]]:
    """One entry for each finished round; a last line that was cut off when the run was stopped is left out.

    Raises
    ------
    RunError
        if a line before the last cannot be read.
    """
    path = Path(folder) / ROUNDS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        read_config(folder)
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    finished = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is empty, or was cut off
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("round"), int):
                raise ValueError("not a round")
        except ValueError as error:
            raise RunError(f"{path}: line {number} is not a finished round; the file was changed or damaged") from error
        finished.append(entry)
    return finished


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file ``name`` of a run folder.

    Raises
    ------
    RunError
        if the folder or the file is not there, or cannot be read, or is damaged.
    """
    path = folder / name
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such run folder") from error
        raise RunError(f"{folder}: not a run folder, it has no {name}; give a folder that fedquilt run made") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged, not JSON ({error}); restore it from a copy") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged, not a JSON object; restore it from a copy")
    return value


def is_run(folder: Path) -> bool:
    """Whether there is a run in the folder."""
    return (folder / CONFIG).exists()
