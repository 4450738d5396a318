"""JSON files, files checked by hash, and error messages for failed writes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedquilt.core.disk import sync_folder, write_bytes
from fedquilt.core.errors import RunError


def read_bytes(path: Path, sha256: str, advice: str) -> bytes:
    """Read a file and check it against the ``sha256`` (hex) that was recorded when it was written.

    Raises
    ------
    RunError
        if the file is missing or has changed; the message ends with ``advice``, what to do then.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(f"{path}: damaged, its sha256 is not the one that was noted; {advice}")
    return content


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write ``value`` as JSON, replacing the file atomically; NaN and infinities become null."""
    write_bytes(path, to_json(value, indent=1).encode() + b"\n", private=private)
    sync_folder(path.parent)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return ``value``, converted by ``plain``, as JSON text."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """Convert ``value`` to JSON types: tuples and tensors to lists, keys to strings, NaN and infinities to None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value  # numpy and torch


@contextmanager
def explained(path: Path, what_is_safe: Callable[[], str], then: str) -> Iterator[None]:
    """Turn an OSError inside the block into a RunError for the user.

    The message names ``path`` and the reason, then ``what_is_safe()``, and ends with what to do about the disk and
    ``then``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "make the folder writable"
        else:
            advice = "check the disk"
        reason = error.strerror or str(error)
        raise RunError(f"{path}: cannot be written ({reason}); {what_is_safe()}; {advice}, then {then}") from error
