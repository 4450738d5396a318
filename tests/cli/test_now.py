"""What a run is doing, in words, and the line of it that a piped command prints now and then."""

from threading import Event

import pytest

from fedquilt.cli.now import Heartbeat, Now, now_left


def test_what_a_run_does_is_told_from_its_start_to_its_end():
    now = Now()
    assert now.text() == ""
    now.stage("tiny", "loading data and model")
    assert now.text() == "tiny: loading data and model"
    now.started("tiny", 0, 3)
    assert now.text() == "tiny: round 1/3"
    now.step(2, 9)
    assert now.text() == "tiny: round 1/3: step 2 of 9"
    now.client("fit", 1, 4)
    now.step(1, 9)
    assert now.text() == "tiny: round 1/3: 1 of 4 clients have done their part (fit), step 1 of 9"
    now.stage("tiny", "evaluating")
    assert now.text() == "tiny: round 1/3: evaluating"
    now.round({"run": "tiny", "round": 0, "rounds": 3})
    assert now.text() == "tiny: round 2/3"
    now.round({"run": "tiny", "round": 2, "rounds": 3})
    now.stage("tiny", "writing adapters")
    assert now.text() == "tiny: round 3/3: writing adapters"
    now.ended("tiny")
    assert now.text() == ""


def test_runs_in_parallel_are_told_side_by_side():
    now = Now()
    now.runs(0, 3)
    now.started("a", 0, 5)
    now.started("b", 2, 5)
    now.round({"run": "a", "round": 0, "rounds": 5})
    assert now.text() == "0 of 3 runs finished; a: round 2/5; b: round 3/5"
    now.ended("a")
    now.runs(1, 3)
    assert now.text() == "1 of 3 runs finished; b: round 3/5"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(600, "about 10 min left"), (4, "a few seconds left"), (-3, "a few seconds left"), (-11, "longer than estimated")],
)
def test_the_time_left_is_told_also_where_it_is_short_or_was_wrong(seconds, words):
    assert now_left(seconds) == words


def test_a_line_is_printed_only_where_none_has_been_for_a_while(monkeypatch):
    clock, said, heard = [1000.0], [], Event()
    monkeypatch.setattr("fedquilt.cli.now.time.monotonic", lambda: clock[0])

    def say(text):
        said.append(text)
        heard.set()

    beat = Heartbeat(lambda: "working", say, every=0.02)
    with beat:
        for _ in range(30):  # other lines are printed, each before the next is due
            clock[0] += 0.01
            beat.reset()
        assert said == []
        clock[0] += 5.0
        assert heard.wait(60)
    assert said[0] == "working, 5 s so far"
    assert not beat._thread.is_alive()  # so that nothing follows its end


def test_lines_become_rare_in_a_run_that_takes_long(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("fedquilt.cli.now.time.monotonic", lambda: clock[0])
    beat, pauses = Heartbeat(str, print), []
    for clock[0] in (1000, 1100, 1000 + 3600, 1000 + 86400):
        beat.reset()
        pauses.append(beat._due - clock[0])
    assert pauses == [10, 10, 180, 300]
