"""``rounds.jsonl``, open for writing: one line for each finished round, and none twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedquilt.core.disk import append_bytes, cut_bytes
from fedquilt.core.errors import RunError
from fedquilt.record.files import to_json
from fedquilt.record.manifest import RESTORE, Lines
from fedquilt.record.read import ROUNDS, read_lines


class RoundLines:
    """The lines of a run that this process writes; ``written`` are those that the run holds so far."""

    def __init__(self, folder: Path, written: Lines, next_round: int) -> None:
        self.path = folder / ROUNDS
        self.written = written
        self.next_round = next_round
        self._running: Any = None  # the sha256 of what is written, once it has been read

    def append(self, line: Mapping[str, Any]) -> None:
        """Put the line of the next round on the disk.

        Raises
        ------
        RunError
            if somebody else has changed the file.
        ValueError
            if it is not the round that comes next.
        OSError
            if the disk refuses.
        """
        if line["round"] != self.next_round:
            raise ValueError(f"round {line['round']} where round {self.next_round} comes next")
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.written.bytes:
            raise RunError(
                f"{self.path}: has {size} bytes where this run had written {self.written.bytes}; somebody else changed "
                f"it; {RESTORE}"
            )
        if self._running is None:
            self._running = hashlib.sha256(read_lines(self.path.parent, self.written))
        content = to_json(line).encode() + b"\n"
        try:
            append_bytes(self.path, content)
        except OSError:
            with suppress(OSError):  # half a line would be dropped later, too
                cut_bytes(self.path, self.written.bytes)
            raise
        self._running.update(content)
        self.written = Lines(self.written.bytes + len(content), self._running.hexdigest())
        self.next_round += 1

    def cut(self, lines: Lines, next_round: int) -> None:
        """Drop what stands behind these lines, which must be as they were written.

        Raises
        ------
        RunError
            if they are not.
        OSError
            if the disk refuses.
        """
        read_lines(self.path.parent, lines)
        if self.path.exists():
            cut_bytes(self.path, lines.bytes)
        self.written, self.next_round, self._running = lines, next_round, None
