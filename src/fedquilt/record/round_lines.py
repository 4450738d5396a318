"""``rounds.jsonl``, open for writing: exactly one line for each finished round."""

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
    """The lines of a run that this process writes; ``written`` covers the lines so far."""

    def __init__(self, folder: Path, written: Lines, next_round: int) -> None:
        self.path = folder / ROUNDS
        self.written = written
        self.next_round = next_round
        self._running: Any = None  # the running sha256 of the written lines, once they have been read

    def append(self, line: Mapping[str, Any]) -> None:
        """Write the line of the next round to disk.

        Raises
        ------
        RunError
            if another process has changed the file.
        ValueError
            if it is not the next round.
        OSError
            if the disk refuses.
        """
        if line["round"] != self.next_round:
            raise ValueError(f"round {line['round']} where round {self.next_round} comes next")
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.written.bytes:
            raise RunError(
                f"{self.path}: has {size} bytes, but this run has written {self.written.bytes}; another process has "
                f"changed it; {RESTORE}"
            )
        if self._running is None:
            self._running = hashlib.sha256(read_lines(self.path.parent, self.written))
        content = to_json(line).encode() + b"\n"
        try:
            append_bytes(self.path, content)
        except OSError:
            with suppress(OSError):  # if this fails too, half a line remains, which is dropped on resuming
                cut_bytes(self.path, self.written.bytes)
            raise
        self._running.update(content)
        self.written = Lines(self.written.bytes + len(content), self._running.hexdigest())
        self.next_round += 1

    def cut(self, lines: Lines, next_round: int) -> None:
        """Delete everything after these lines, which must be unchanged.

        Raises
        ------
        RunError
            if they were changed.
        OSError
            if the disk refuses.
        """
        read_lines(self.path.parent, lines)
        if self.path.exists():
            cut_bytes(self.path, lines.bytes)
        self.written, self.next_round, self._running = lines, next_round, None
