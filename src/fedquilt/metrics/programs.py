"""The values of programs that a model wrote. They run in a process of their own, never in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.metrics.answers import number, program, same_number

CHILD = Path(__file__).with_name("program_child.py")
SECONDS, WALL_SECONDS, STEPS, MEMORY = 2, 60.0, 100_000, 256 * 2**20
"""Bounds of one program: processor time, time by the clock, lines that are run, bytes of address space."""


class Ran(NamedTuple):
    """A program's value, or None and the ``reason`` why it has none."""

    value: Fraction | None
    reason: str


def run_programs(programs: Sequence[str]) -> list[Ran]:
    """The value of each program: the number in its ``answer``, or the last one that it prints.

    All run in one short-lived Python without site packages, environment or open files, in an empty folder; each there
    in a process of its own, with the bounds above. Lines are counted so that an endless loop ends at the same place on
    every machine; the other bounds are for what one line can do. See ``program_child`` for what a program may use.

    Raises
    ------
    ConfigError
        if this system cannot bound a process.
    RunError
        if the process that runs them cannot do so.
    """
    if os.name != "posix":
        raise ConfigError(
            "data.answers = 'program': programs run in a bounded process, which this system has not; use Linux or "
            "macOS, or leave data.answers out"
        )
    if not programs:
        return []
    bounds = {"seconds": SECONDS, "wall_seconds": WALL_SECONDS, "steps": STEPS, "memory": MEMORY}
    asked = json.dumps({"programs": list(programs), **bounds})
    command = [sys.executable, "-I", "-S", "-B", str(CHILD)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with tempfile.TemporaryDirectory(prefix="fedquilt-programs-") as empty:
        process = subprocess.Popen(command, cwd=empty, env={}, start_new_session=True, encoding="utf-8", **pipes)
        try:
            results, complaint = process.communicate(asked, timeout=30 + len(programs) * (WALL_SECONDS + 1))
        except BaseException:  # of whatever kind, an interrupt too: none of them may live on
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    if process.returncode != 0:  # not for anything that a program did: each is in a process below
        last = (complaint.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(
            f"data.answers = 'program': the process that runs programs ended with {process.returncode} ({last}); look "
            "at the limits on processes and memory of this machine, or choose another data.answers"
        )
    return [_ran(text, reason) for text, reason in json.loads(results)]


def right_programs(said: Sequence[str], gold: Sequence[str]) -> list[bool]:
    """For each answer, whether its program has the value of the right one; the same text is right without running."""
    pairs = [(program(mine).strip(), program(right).strip()) for mine, right in zip(said, gold, strict=True)]
    texts = list(dict.fromkeys(text for mine, right in pairs if mine != right for text in (mine, right)))
    values = {text: ran.value for text, ran in zip(texts, run_programs(texts), strict=True)}
    return [mine == right or same_number(values[mine], values[right]) for mine, right in pairs]


def _ran(text: str | None, reason: str) -> Ran:
    value = None if text is None else number(text)
    return Ran(value, reason if text is None or value is not None else "says no number")
