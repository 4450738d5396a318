"""The run folder: what a run writes while it goes, what it is resumed from, and what reports read.

A checkpoint is a manifest (``checkpoint.json``) and the files it names in ``checkpoint/``. Those files never change
once written; the manifest is replaced in one step when all of them are safely on the disk, so whatever stops a run,
the manifest that is there names a whole checkpoint. torch is imported by what needs it: reports read a run without it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from fedquilt.core.types import ClientId, Memory, Tree

_FORMAT = 1
_CONFIG, _ENVIRONMENT, _PARTITION, _RESULT = "config.json", "environment.json", "partition.json", "result.json"
_ROUNDS, _MANIFEST, _FILES = "rounds.jsonl", "checkpoint.json", "checkpoint"
# safetensors writes some of the newest dtypes but does not read them back; those not listed go as bytes
_STORED_AS_THEY_ARE = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_PACKAGES = ("fedquilt", "torch", "transformers", "datasets", "safetensors", "numpy", "flwr")


class Record:
    """One run folder, open for writing. Made by ``Record.create`` or ``Record.open``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self._last_round = self._read_manifest()["next_round"] - 1 if self.has_checkpoint else None
        # client -> (the memory as last saved, its entry in the manifest); the reference keeps the identity meaningful
        self._saved: dict[ClientId, tuple[Memory, dict[str, Any]]] = {}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        partition: Mapping[str, Any],
    ) -> Record:
        """A new run folder that holds the config, the environment and the partition; it appears whole or not at all.

        Raises
        ------
        RunError
            if the folder exists and is not empty, or cannot be written.
        """
        folder = Path(folder)
        with _explained(folder, lambda: "no run was started", "start the run again"):
            cls.refuse(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = folder.parent / f".{folder.name}.creating"
            if draft.exists():
                shutil.rmtree(draft)
            (draft / _FILES).mkdir(parents=True)
            for name, value in ((_CONFIG, config), (_ENVIRONMENT, environment), (_PARTITION, partition)):
                write_json(draft / name, value)
            if folder.is_dir():
                folder.rmdir()
            os.replace(draft, folder)
            _sync_folder(folder.parent)
        return cls(folder, read_config(folder))

    @staticmethod
    def refuse(folder: Path) -> None:
        """Nothing, if a new run could be made in ``folder``: it does not exist, or is an empty folder.

        Raises
        ------
        RunError
            if it is a file or holds anything.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is a file, not a folder; choose another output")
        if folder.is_dir() and any(folder.iterdir()):
            resume = f"continue that run with: fedquilt run --resume {folder}\nor " if _is_run(folder) else ""
            raise RunError(f"{folder}: this folder exists and is not empty; {resume}choose another name or output")

    @classmethod
    def open(cls, folder: str | Path, config: Mapping[str, Any] | None = None, ignored: Collection[str] = ()) -> Record:
        """The run in an existing folder, to be resumed.

        ``config`` is what the caller wants to run; its keys (``"training.steps"``), but those in ``ignored``, must have
        the values that the run was started with.

        Raises
        ------
        RunError
            if there is no run in the folder, or it was started from another config.
        """
        folder = Path(folder)
        own = read_config(folder)
        if config is not None:
            _same_config(folder, own, config, ignored)
        return cls(folder, own)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from; a run stopped in its first round has none."""
        return (self.folder / _MANIFEST).exists()

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Write one finished round to the disk. To be called before the round's ``save_checkpoint``."""
        path = self.folder / _ROUNDS
        with self._writing(path), open(path, "ab") as file:
            file.write(_json(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_rounds(self, next_round: int) -> None:
        """Drop the lines of rounds from ``next_round`` on, and a last line that was cut off: they will be run again."""
        path = self.folder / _ROUNDS
        kept = [line for line in read_rounds(self.folder) if line["round"] < next_round]
        with self._writing(path):
            _write(path, b"".join(_json(line).encode() + b"\n" for line in kept))
            _sync_folder(self.folder)

    def save_checkpoint(self, next_round: int, state: Tree, memories: Mapping[ClientId, Memory], seed: int) -> None:
        """Make this the run's checkpoint: the server's state and all clients' memories, before ``next_round``.

        A memory that is the same object as at the last call is not written again, so a memory must be replaced, not
        changed in place. Until the new checkpoint is whole, the old one stays.

        Raises
        ------
        RunError
            if the disk is full or the folder cannot be written.
        TypeError
            if the state or a memory is not a tree.
        """
        with self._writing(self.folder / _FILES):
            (self.folder / _FILES).mkdir(exist_ok=True)
            saved = {}
            for client, memory in sorted(memories.items()):
                old = self._saved.get(client)
                if old is not None and old[0] is memory:
                    saved[client] = old
                else:
                    saved[client] = (memory, self._store(f"client-{client:03d}", memory))
            state_entry = self._store("state", state)
            manifest = {
                "format": _FORMAT,
                "next_round": next_round,
                "seed": seed,
                "config": self.config,
                "state": state_entry,
                "memories": {str(client): entry for client, (_, entry) in saved.items()},
            }
            _sync_folder(self.folder / _FILES)
            _write(self.folder / _MANIFEST, _json(manifest, indent=1).encode())
            self._last_round = next_round - 1
            self._saved = saved
            _sync_folder(self.folder)  # before anything the old manifest names is deleted
            named = {state_entry["file"], *(entry["file"] for _, entry in saved.values())}
            for path in (self.folder / _FILES).iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def load_checkpoint(self) -> tuple[int, Tree, dict[ClientId, Memory]]:
        """The next round to run, the server's state and the clients' memories, tensors on the CPU.

        Raises
        ------
        RunError
            if there is no checkpoint, it belongs to another config, or one of its files is missing or damaged.
        """
        manifest = self._read_manifest()
        _same_config(self.folder, manifest["config"], self.config, (), "checkpoint from another config")
        state = self._fetch(manifest["state"])
        self._saved = {int(client): (self._fetch(entry), entry) for client, entry in manifest["memories"].items()}
        return manifest["next_round"], state, {client: memory for client, (memory, _) in self._saved.items()}

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the sign that the run is finished."""
        with self._writing(self.folder / _RESULT):
            write_json(self.folder / _RESULT, result)

    def _read_manifest(self) -> dict[str, Any]:
        if not self.has_checkpoint:
            raise RunError(
                f"{self.folder}: no checkpoint, because the run ended before its first round was complete; "
                "start it again from round 0"
            )
        manifest = _read_json(self.folder, _MANIFEST)
        if manifest.get("format") != _FORMAT:
            raise RunError(
                f"{self.folder / _MANIFEST}: format {manifest.get('format')}, but this version of fedquilt reads "
                f"format {_FORMAT}; resume with the version named in {_ENVIRONMENT}"
            )
        return manifest

    def _store(self, name: str, tree: Tree) -> dict[str, Any]:
        content = tree_to_bytes(tree, name)
        sha256 = hashlib.sha256(content).hexdigest()
        # the name holds the content's hash: a file the current manifest names is never overwritten by other bytes
        file = f"{name}-{sha256[:16]}.safetensors"
        _write(self.folder / _FILES / file, content)
        return {"file": file, "sha256": sha256, "bytes": len(content)}

    def _fetch(self, entry: Mapping[str, Any]) -> Tree:
        path = self.folder / _FILES / entry["file"]
        advice = "the checkpoint cannot be used; restore the file from a copy, or start the run again in another folder"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise RunError(f"{path}: damaged, its sha256 is not the one in {_MANIFEST}; {advice}")
        return tree_from_bytes(content)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        with _explained(path, self._what_is_safe, f"continue with: fedquilt run --resume {self.folder}"):
            yield

    def _what_is_safe(self) -> str:
        if self._last_round is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of round {self._last_round} is whole"


def read_config(folder: str | Path) -> dict[str, Any]:
    """The resolved config that the run was started with.

    Raises
    ------
    RunError
        if the folder holds no run.
    """
    return _read_json(Path(folder), _CONFIG)


def read_environment(folder: str | Path) -> dict[str, Any]:
    """Versions, device and time of the run."""
    return _read_json(Path(folder), _ENVIRONMENT)


def read_partition(folder: str | Path) -> dict[str, Any]:
    """Which rows each client had, and its labels, budget and architecture."""
    return _read_json(Path(folder), _PARTITION)


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The run's result, or None if it is not finished."""
    if not (Path(folder) / _RESULT).exists():
        read_config(folder)  # an unfinished run is one thing, a folder without a run another
        return None
    return _read_json(Path(folder), _RESULT)


def read_rounds(folder: str | Path) -> list[dict[str, Any]]:
    """One entry for each finished round; a last line that was cut off when the run was stopped is left out.

    Raises
    ------
    RunError
        if a line before the last cannot be read.
    """
    path = Path(folder) / _ROUNDS
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


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that the file is the old one or the new one, never a part; NaN and infinities become null."""
    _write(path, _json(value, indent=1).encode() + b"\n")
    _sync_folder(path.parent)


def environment(**more: Any) -> dict[str, Any]:
    """Versions, platform, processors, torch's threads and the time (UTC), and whatever else is worth keeping."""
    import torch

    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # flwr is optional
            versions[name] = version(name)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def tree_to_bytes(tree: Tree, name: str = "tree") -> bytes:
    """A safetensors file that holds every tensor of a tree, with the tree's shape as JSON in its header.

    Exact for every dtype, for tensors without dimensions or elements, and for views. Device,
    ``requires_grad`` and shared memory are not kept. ``name`` is the tree's name in messages.

    Raises
    ------
    TypeError
        if something in it is not a dict with string keys, list, tensor, number, string, boolean or None (a tuple).
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    shape = json.dumps(_packed(tree, name, tensors))
    return bytes(save(tensors, metadata={"tree": shape}))


def tree_from_bytes(content: bytes) -> Tree:
    """The tree of which ``content`` is the file."""
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return _unpacked(json.loads(header["__metadata__"]["tree"]), load(content))


def _packed(tree: Tree, where: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON: the one key of a JSON object, "dict", "tensor", "bytes" or "float", says what it stands for."""
    from torch import Tensor, contiguous_format, strided, uint8

    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": repr(float(tree))}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is {_a(key)}; keys are strings, so write it as {str(key)!r}")
        return {"dict": {key: _packed(value, f"{where}[{key!r}]", tensors) for key, value in tree.items()}}
    if isinstance(tree, list):
        return [_packed(value, f"{where}[{index}]", tensors) for index, value in enumerate(tree)]
    if isinstance(tree, Tensor):
        if tree.layout is not strided or tree.is_quantized or tree.is_meta:
            raise TypeError(f"{where} is a tensor without plain dense values ({tree.layout}, {tree.device})")
        name = str(len(tensors))
        # a copy of its own: safetensors refuses views and shared memory
        tensor = tree.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=contiguous_format)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype in _STORED_AS_THEY_ARE:
            tensors[name] = tensor
            return {"tensor": name}
        tensors[name] = tensor.reshape(-1).view(uint8)
        return {"bytes": [name, dtype, list(tensor.shape)]}
    advice = "; use a list" if isinstance(tree, (tuple, set)) else ""
    raise TypeError(
        f"{where} is {_a(tree)}, but a state or memory holds only dicts, lists, tensors, numbers, strings, booleans "
        f"and None{advice}"
    )


def _unpacked(shape: Any, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(shape, list):
        return [_unpacked(value, tensors) for value in shape]
    if not isinstance(shape, dict):
        return shape
    ((kind, value),) = shape.items()
    if kind == "dict":
        return {key: _unpacked(entry, tensors) for key, entry in value.items()}
    if kind == "bytes":
        import torch

        name, dtype, size = value
        return tensors[name].view(getattr(torch, dtype)).reshape(size)
    return tensors[value] if kind == "tensor" else float(value)


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"


def _write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step; its name is safe once the folder is synced too."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with suppress(OSError):  # what went wrong first is what the user must hear
            part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle on a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
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


def _is_run(folder: Path) -> bool:
    return (folder / _CONFIG).exists()


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value  # numpy and torch


def _same_config(
    folder: Path, own: Mapping[str, Any], other: Mapping[str, Any], ignored: Collection[str], what: str = "run"
) -> None:
    left, right = _flat(_plain(own)), _flat(_plain(other))
    different = [
        key
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]
    if not different:
        return
    listed = "; ".join(f"{key} is {left.get(key)!r} there and {right.get(key)!r} now" for key in different[:8])
    more = f"; and {len(different) - 8} more" if len(different) > 8 else ""
    begin = "checkpoint from another config" if what != "run" else "this run was started from another config"
    raise RunError(
        f"{folder}: {begin}: {listed}{more}; resume with the run's own config, or start a new run in another folder"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, entry in value.items():
        flat.update(_flat(entry, f"{prefix}{key}.") if isinstance(entry, Mapping) else {f"{prefix}{key}": entry})
    return flat


@contextmanager
def _explained(path: Path, what_is_safe: Callable[[], str], then: str) -> Iterator[None]:
    """Turn what the disk refused into a message: what, why, what is safe, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "make the folder writable"
        else:
            advice = "see to the disk"
        reason = error.strerror or str(error)
        raise RunError(f"{path}: cannot be written ({reason}); {what_is_safe()}; {advice}, then {then}") from error
