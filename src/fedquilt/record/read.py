"""Readers of a run folder, which check what they read; they need no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedquilt.core.errors import RunError
from fedquilt.record.client_table import as_read
from fedquilt.record.manifest import (
    MANIFEST,
    RESTORE,
    Lines,
    Manifest,
    check_bytes,
    check_files,
    read_manifest,
)

CONFIG, ENVIRONMENT, PARTITION, RESULT = "config.json", "environment.json", "partition.json", "result.json"
ROUNDS = "rounds.jsonl"


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the resolved config that the run was started with.

    This and the other readers check each file against the sha256 in the run's manifest.

    Raises
    ------
    RunError
        if the folder holds no run, or the file was changed since the run wrote it.
    """
    return _read_checked(Path(folder), CONFIG)


def read_environment(folder: str | Path) -> dict[str, Any]:
    """Read the versions, device and time of the run."""
    return _read_checked(Path(folder), ENVIRONMENT)


def read_partition(folder: str | Path) -> dict[str, Any]:
    """Read which rows each client had, and its labels, budget and architecture.

    ``clients`` is a sequence of objects, whichever way the file keeps them (see ``record.client_table``).

    Raises
    ------
    RunError
        as the other readers do, and if the clients are not described as a run describes them.
    """
    value = _read_checked(Path(folder), PARTITION)
    try:
        return as_read(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{Path(folder) / PARTITION}: damaged, its clients cannot be read ({error}); {RESTORE}"
        ) from error


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """Read the run's result; None if the run is not finished."""
    folder = Path(folder)
    read_config(folder)  # raises where there is no run at all
    manifest = manifest_of(folder)
    # the manifest names the result before the file exists, and a run that went back to a checkpoint has none
    if not (folder / RESULT).exists() or (manifest is not None and RESULT not in manifest.files):
        return None
    return _read_checked(folder, RESULT)


def remark_if_unfinished(folder: str | Path) -> str:
    """A sentence on a run that has no result yet, whose model is that of its last checkpoint; else empty."""
    if read_result(folder) is not None:
        return ""
    done, planned = len(read_rounds(folder)), read_config(folder).get("rounds")
    return f"{folder} is unfinished: this is the model of its last checkpoint, and {done} of {planned} rounds are done"


def read_rounds(folder: str | Path) -> list[dict[str, Any]]:
    """Read the finished rounds, in order.

    Lines that the last checkpoint does not include are left out: a round that was being finished when the run stopped,
    and a truncated last line. In runs of earlier versions a round may occur twice; the later line counts.

    Raises
    ------
    RunError
        if lines are lost or were changed.
    """
    folder = Path(folder)
    read_config(folder)
    path, manifest = folder / ROUNDS, manifest_of(folder)
    content = read_lines(folder, None if manifest is None else manifest.lines)
    finished: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # after the last break: a truncated line
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("round"), int):
                raise ValueError("not a round")
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: line {number} is not a finished round; the file was changed or damaged") from error
        finished[entry["round"]] = entry
    return [finished[number] for number in sorted(finished)]


def read_lines(folder: Path, lines: Lines | None) -> bytes:
    """Read and check the lines of ``rounds.jsonl`` that a manifest records; all lines if ``lines`` is None.

    Raises
    ------
    RunError
        if lines are lost or were changed.
    """
    path = folder / ROUNDS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    if lines is None:
        return content
    if len(content) < lines.bytes:
        raise RunError(
            f"{path}: lines of finished rounds are lost ({len(content)} bytes of {lines.bytes} are there); {RESTORE}"
        )
    check_bytes(path, content[: lines.bytes], lines.sha256)
    return content[: lines.bytes]


def manifest_of(folder: Path) -> Manifest | None:
    """Read the manifest of the run in a folder; None for a run that was made before there were manifests.

    Raises
    ------
    RunError
        if the manifest is damaged or lost.
    """
    manifest = read_manifest(folder)
    if manifest is None and "format" in read_json(folder, ENVIRONMENT):
        raise RunError(f"{folder / MANIFEST}: is lost, or belongs to another run; {RESTORE}")
    return manifest


def _read_checked(folder: Path, name: str) -> dict[str, Any]:
    value = read_json(folder, name)  # first: its error is the clearer one where the folder is not a run
    manifest = manifest_of(folder)
    if manifest is not None:
        check_files(folder, [name], manifest)
    return value


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read the JSON object in the file ``name`` of a run folder.

    Raises
    ------
    RunError
        if the folder or the file does not exist, cannot be read, or is damaged.
    """
    path = folder / name
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            what = (
                "is a file; give the folder that the run was written to" if folder.is_file() else "no such run folder"
            )
            raise RunError(f"{folder}: {what}") from error
        raise RunError(f"{folder}: not a run folder, it has no {name}; {_runs_inside(folder)}") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, not JSON ({error}); restore it from a copy") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged, not a JSON object; restore it from a copy")
    return value


def _runs_inside(folder: Path) -> str:
    inside = [run.name for run in runs_inside(folder)]
    if not inside:
        return "give a folder that a run was written to"
    return f"it contains runs, give one of them: {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}"


def runs_inside(folder: Path) -> list[Path]:
    """The run folders directly inside a folder, by name; drafts, whose names begin with a dot, are none."""
    return sorted(path.parent for path in folder.glob(f"[!.]*/{CONFIG}"))


def run_folders(given: Sequence[Path]) -> list[Path]:
    """The folders; in place of each one that is no run but holds runs, these runs."""
    return [run for one in given for run in ([one] if is_run(one) else runs_inside(one) or [one])]


def is_run(folder: Path) -> bool:
    """Whether there is a run in the folder."""
    return (folder / CONFIG).exists()
