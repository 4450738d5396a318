"""Where the time of a run goes: named spans, as a table and as a trace file in Chrome's format.

Nothing is measured outside ``recording``: a span is then a null context.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Share:
    """All spans of one name.

    Attributes
    ----------
    name
        The name.
    count
        The number of spans.
    seconds, own_seconds
        Their wall-clock time, and that without the spans inside them.
    cpu_seconds
        The process's processor time without the spans inside them, over all threads.
    """

    name: str
    count: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    cpu_seconds: float = 0.0


class _Moment(NamedTuple):
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Moment:
        return cls(time.perf_counter(), time.process_time())


@dataclass
class _Open:
    name: str
    began: _Moment
    inner_wall: float = 0.0
    inner_cpu: float = 0.0


@dataclass
class Profile:
    """The spans of a run.

    Attributes
    ----------
    shares
        The sums by name, in the order in which the names were first seen.
    events
        Every span as an event of Chrome's trace format: name, start and length in microseconds, and what was told.
    """

    shares: dict[str, Share] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)

    @contextmanager
    def span(self, name: str, told: dict[str, Any]) -> Iterator[None]:
        """Measure what happens inside."""
        mine = _Open(name, _Moment.now())
        self._open.append(mine)
        try:
            yield
        finally:
            self._open.pop()
            ended = _Moment.now()
            self._close(mine, ended.wall - mine.began.wall, ended.cpu - mine.began.cpu, told)

    def _close(self, mine: _Open, wall: float, cpu: float, told: dict[str, Any]) -> None:
        if self._open:
            self._open[-1].inner_wall += wall
            self._open[-1].inner_cpu += cpu
        before = self.shares.get(mine.name, Share(mine.name))
        nested = any(one.name == mine.name for one in self._open)  # its time is already part of the outer span's
        self.shares[mine.name] = Share(
            mine.name,
            before.count + 1,
            before.seconds + (0.0 if nested else wall),
            before.own_seconds + wall - mine.inner_wall,
            before.cpu_seconds + cpu - mine.inner_cpu,
        )
        self.events.append(
            {
                "name": mine.name,
                "ph": "X",
                "ts": round(mine.began.wall * 1e6),
                "dur": round(wall * 1e6),
                "pid": os.getpid(),
                "tid": 0,
                "args": told,
            }
        )

    def trace(self) -> str:
        """The events as a file in Chrome's trace format, which chrome://tracing and ui.perfetto.dev open."""
        events = sorted(self.events, key=lambda event: (event["ts"], -event["dur"]))
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


_CURRENT: ContextVar[Profile | None] = ContextVar("fedquilt_profile", default=None)


@contextmanager
def recording() -> Iterator[Profile]:
    """Record the spans inside, of this thread."""
    profile = Profile()
    before = _CURRENT.set(profile)
    try:
        yield profile
    finally:
        _CURRENT.reset(before)


def span(name: str, **told: Any) -> AbstractContextManager[None]:
    """A span of this name; ``told`` are texts and numbers that the trace file shows beside it."""
    profile = _CURRENT.get()
    return nullcontext() if profile is None else profile.span(name, told)
