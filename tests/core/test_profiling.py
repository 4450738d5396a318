"""Spans: nested time is counted once, and nothing is measured unless someone asks."""

import json
import time

import pytest

from fedquilt.core import profiling
from fedquilt.core.profiling import recording, span


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(profiling.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(profiling.time, "process_time", lambda: self.now / 2)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_part_is_counted_without_what_is_inside_it(clock):
    with recording() as profile:
        for _ in range(2):
            with span("round"):
                clock.passes(1.0)
                with span("client", client=3):
                    clock.passes(4.0)
                clock.passes(0.5)
    outer, inner = profile.shares["round"], profile.shares["client"]
    assert (outer.count, outer.seconds, outer.own_seconds, outer.cpu_seconds) == (2, 11.0, 3.0, 1.5)
    assert (inner.count, inner.seconds, inner.own_seconds, inner.cpu_seconds) == (2, 8.0, 8.0, 4.0)
    assert sum(share.own_seconds for share in profile.shares.values()) == clock.now


def test_a_part_inside_one_of_the_same_name_is_not_counted_twice(clock):
    with recording() as profile, span("forward"):
        clock.passes(1.0)
        with span("forward"):
            clock.passes(2.0)
    assert profile.shares["forward"].seconds == profile.shares["forward"].own_seconds == 3.0


def test_the_trace_is_in_chromes_format(clock):
    with recording() as profile, span("exchange", exchange="fit", round=1):
        clock.passes(0.25)
        with span("merge"):
            clock.passes(0.5)
    outer, inner = json.loads(profile.trace())["traceEvents"]
    assert (outer["name"], outer["ph"], outer["ts"], outer["dur"]) == ("exchange", "X", 0, 750_000)
    assert outer["args"] == {"exchange": "fit", "round": 1}
    assert (inner["name"], inner["ts"], inner["dur"]) == ("merge", 250_000, 500_000)


def test_what_fails_is_measured_too(clock):
    def merge():
        with span("merge"):
            clock.passes(1.0)
            raise KeyError

    with recording() as profile, pytest.raises(KeyError):
        merge()
    assert profile.shares["merge"].seconds == 1.0


def test_nothing_is_recorded_outside():
    with span("before"):
        time.perf_counter()
    with recording() as profile:
        pass
    with span("after"):
        time.perf_counter()
    assert profile.shares == {}
    assert profile.events == []
