"""The keys in which two resolved configs differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedquilt.core.errors import RunError
from fedquilt.record.files import plain


def check_same(folder: Path, own: Mapping[str, Any], other: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Raise RunError if two configs differ in a key that is not in ``ignored``; the error lists the keys.

    ``folder`` is the run folder of ``own``; ``ignored`` holds dotted keys, each with everything below it.
    """
    left, right = _flat(plain(own)), _flat(plain(other))
    different = [
        key
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]
    if not different:
        return
    listed = "; ".join(f"{key} is {left.get(key)!r} there and {right.get(key)!r} now" for key in different[:8])
    more = f"; and {len(different) - 8} more" if len(different) > 8 else ""
    raise RunError(
        f"{folder}: this run was started from another config: {listed}{more}; resume with the run's own config, or "
        "start a new run in another folder"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, entry in value.items():
        flat.update(_flat(entry, f"{prefix}{key}.") if isinstance(entry, Mapping) else {f"{prefix}{key}": entry})
    return flat
