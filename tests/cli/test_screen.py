"""The screen of runs on a recorded console: bars on a terminal, lines elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from fedquilt.cli import screen
from fedquilt.cli.screen import Shown, step_bar
from fedquilt.experiment.forecast import Forecast

LINE = {"exchanges": [], "evaluation": None, "seconds": 61.0, "rounds": 8}


@pytest.fixture
def recorded(monkeypatch):
    """``recorded(terminal)``: what is written to standard error from then on."""

    def begin(terminal):
        written = io.StringIO()
        monkeypatch.setattr(screen, "errors", Console(file=written, force_terminal=terminal, width=120))
        return written

    return begin


def wait_for(written, words):
    """Wait until a text has been written, whatever else the machine does."""
    end = time.monotonic() + 20
    while words not in written.getvalue():
        assert time.monotonic() < end, f"{words!r} was not written"
        time.sleep(0.01)


def rows(shown):
    return [(task.description, task.completed, task.total) for task in shown.bars.tasks if task.visible]


def test_runs_in_parallel_have_a_row_each_and_none_stands_at_an_unknown_total(recorded):
    written = recorded(terminal=True)
    with Shown() as shown:
        shown.bars.refresh()
        assert rows(shown) == []
        shown.runs(0, 3)
        shown.stage("a", "loading data and model")
        shown.started("a", 0, 8)
        shown.started("b", 2, 8)
        shown.round({**LINE, "run": "a", "round": 0})
        assert rows(shown) == [("runs", 0, 3), ("a", 1, 8), ("b", 2, 8)]
        shown.bars.refresh()
        shown.stage("a", "writing adapters")
        assert shown.bars.tasks[3].fields["note"] == "writing adapters"
        shown.ended("a")
        shown.runs(1, 3)
        assert rows(shown) == [("runs", 1, 3), ("b", 2, 8)]
    assert "1/8" in written.getvalue()
    assert "/?" not in written.getvalue()


def test_the_time_left_of_the_whole_run_stays_where_rounds_take_minutes(recorded, monkeypatch):
    clock = [0.0]
    written = recorded(terminal=True)
    with Shown() as shown:
        monkeypatch.setattr("fedquilt.cli.screen.time.monotonic", lambda: clock[0])
        shown.started("tiny", 0, 8)
        shown.round({**LINE, "run": "tiny", "round": 0})
        shown.forecast(Forecast(left=1200.0, round=170.0, evaluation=1.0))
        for clock[0], words in ((120, "about 18 min left"), (1195, "a few seconds left"), (1300, "longer than")):
            shown.bars.refresh()
            assert words in written.getvalue()
        shown.stage("tiny", "writing adapters")
        shown.bars.refresh()
    assert "writing adapters" in written.getvalue()
    assert "-:--:--" not in written.getvalue()


def test_a_piped_run_is_not_silent_in_a_long_round(recorded):
    written = recorded(terminal=False)
    with Shown(every=0.05) as shown:
        shown.stage("tiny", "loading data and model")
        wait_for(written, " s so far")
        shown.started("tiny", 0, 8)
        shown.client("fit", 1, 4)
        shown.forecast(Forecast(left=1200.0, round=170.0, evaluation=1.0))
        wait_for(written, " min left, ")
        shown.round({**LINE, "run": "tiny", "round": 0})
    lines = written.getvalue().splitlines()
    assert re.fullmatch(r"tiny: loading data and model, \d+ s so far", lines[0])
    told = r"tiny: round 1/8: 1 of 4 clients have done their part \(fit\), about 20 min left, \d+ s so far"
    assert any(re.fullmatch(told, line) for line in lines)
    assert "tiny: round 1/8: nobody trained, 61.0 s" in lines  # on a busy machine another line may follow


def test_a_quiet_run_says_nothing_by_the_clock(recorded):
    written = recorded(terminal=False)
    with Shown(quiet=True, every=0.02) as shown:
        shown.stage("tiny", "loading data and model")
        time.sleep(0.1)
    assert written.getvalue() == ""


def test_the_steps_of_a_training_have_a_time_left_and_lines_now_and_then(recorded):
    written = recorded(terminal=True)
    with step_bar("glyphs") as report:
        time.sleep(0.02)
        report(1, 100000, 2.5)
    assert "min left" in written.getvalue()
    assert "-:--:--" not in written.getvalue()
    written = recorded(terminal=False)
    with step_bar("glyphs", every=0.05) as report:
        report(1, 1000, 2.5)
        wait_for(written, "step 1/1000")
        report(200, 1000, 1.5)
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("glyphs: step 1/1000, loss 2.500, ")
    assert "glyphs: step 200/1000, loss 1.500" in lines
