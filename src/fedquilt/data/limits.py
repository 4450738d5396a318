"""Bounds on what a file may make of itself in memory: nothing that a file says of its own size is trusted."""

from __future__ import annotations

import os
from pathlib import Path

from fedquilt.core.errors import DataError

MOST_PIXELS = 120_000_000
"""Pixels of one picture: more than any common camera has."""

MOST_SIDE = 1024
"""Pixels of the shorter side that are kept of a picture; no common model looks at more."""

MOST_ROWS = 1 << 28

_SMALL = 1 << 28  # bytes that no machine minds, however tightly they were packed
_TIGHTEST = 250  # bytes out of one packed byte; data of use stay far below it


def memory_bytes() -> int:
    """The bytes of memory of this machine; 16 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 << 30


def refuse_large(path: Path, num_bytes: int, share: float = 0.5) -> None:
    """Nothing, if ``num_bytes`` fit in a share of this machine's memory.

    Raises
    ------
    DataError
        if they do not; names the file.
    """
    most = int(memory_bytes() * share)
    if num_bytes > most:
        raise DataError(
            f"{path}: takes {num_bytes / 2**30:.3g} GiB in memory, and this machine has room for {most / 2**30:.3g}; "
            "cut it into smaller files"
        )


def refuse_bomb(path: Path, packed: int, unpacked: int) -> None:
    """Nothing, if ``packed`` bytes of a file may become ``unpacked`` ones.

    Raises
    ------
    DataError
        if they would fill the memory, or are packed tighter than data are; names the file.
    """
    if unpacked > _SMALL and unpacked > _TIGHTEST * max(packed, 1):
        raise DataError(
            f"{path}: {packed:,} bytes unpack to {unpacked:,}, which no data do but a decompression bomb; "
            "write it from its source again"
        )
    refuse_large(path, unpacked)
