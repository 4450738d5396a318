"""Bounds on the memory that an untrusted file may take when it is read."""

from __future__ import annotations

import os
from pathlib import Path

from fedquilt.core.errors import DataError

MOST_PIXELS = 120_000_000
"""Most pixels of one picture; more than any common camera produces."""

MOST_SIDE = 1024
"""Most pixels of the shorter side of a picture; larger pictures are scaled down, as no common model uses more."""

MOST_ROWS = 1 << 28
"""Most rows of one file."""

_SMALL = 1 << 28  # unpacked bytes that are accepted whatever the compression ratio
_TIGHTEST = 250  # the highest compression ratio; real data stay far below it


def memory_bytes() -> int:
    """The memory of this machine in bytes; 16 GiB if it cannot be determined."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 << 30


def refuse_large(path: Path, num_bytes: int, share: float = 0.5) -> None:
    """Raise DataError if ``num_bytes`` exceed a share of this machine's memory.

    Raises
    ------
    DataError
        names the file, the size and the limit.
    """
    most = int(memory_bytes() * share)
    if num_bytes > most:
        raise DataError(
            f"{path}: takes {num_bytes / 2**30:.3g} GiB in memory, and this machine has room for {most / 2**30:.3g}; "
            "cut it into smaller files"
        )


def refuse_bomb(path: Path, packed: int, unpacked: int) -> None:
    """Raise DataError if a compressed file looks like a decompression bomb.

    ``packed`` and ``unpacked`` are its size in bytes before and after decompression.

    Raises
    ------
    DataError
        if the unpacked data exceed half of the memory, or the compression ratio is above that of real data; names the
        file.
    """
    if unpacked > _SMALL and unpacked > _TIGHTEST * max(packed, 1):
        raise DataError(
            f"{path}: {packed:,} bytes unpack to {unpacked:,}, as only a decompression bomb does; write the file again "
            "from its source"
        )
    refuse_large(path, unpacked)
