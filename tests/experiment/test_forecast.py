"""The time that is left, on a clock that the test moves."""

from types import SimpleNamespace

import pytest

from fedquilt.experiment.build import build
from fedquilt.experiment.forecast import Forecast, Spent, Work, forecast, of_all, slow_round, work_of
from fedquilt.experiment.progress import Forecasting, Silent
from fedquilt.experiment.run import resume, run

TEN = Work(rounds=10, evaluations=5, round_steps=100, evaluation_steps=20)


def test_before_a_round_is_finished_steps_count_and_an_evaluation_is_a_guess():
    seen = forecast(TEN, Spent(steps=10, step_seconds=2))
    assert (seen.round, seen.evaluation) == (200, 40)
    assert seen.left == pytest.approx(9.9 * 200 + 5 * 40)


def test_finished_rounds_and_evaluations_count_as_they_were():
    spent = Spent(rounds=4, round_seconds=400, evaluations=2, evaluation_seconds=60, steps=50, step_seconds=99)
    assert forecast(TEN, spent) == Forecast(left=5.5 * 100 + 3 * 30, round=100, evaluation=30)
    over = spent._replace(steps=120)  # a larger cohort than expected
    assert forecast(TEN, over).left == 5 * 100 + 3 * 30
    done = spent._replace(rounds=10, evaluations=5, steps=0)
    assert forecast(TEN, done).left == 0


def test_all_runs_of_a_comparison_count_those_of_unknown_pace_at_the_mean():
    waiting = [("a", 10), ("b", 10), ("c", 4)]
    assert of_all([30], {"a": 2, "b": 4}, waiting) == 30 + 20 + 40 + 12
    assert of_all([30, 50], {"a": 2, "b": 4}, waiting, workers=2) == (30 + 50 + 20 + 40 + 12) / 2
    assert of_all([300, 5], {"a": 2, "b": 4}, [], workers=2) == 300  # it cannot be shared
    assert of_all([], {}, []) == 0


class Heard(Silent):
    def __init__(self):
        self.forecasts, self.said, self.lines = [], [], []

    def forecast(self, seen):
        self.forecasts.append(seen)

    def say(self, text):
        self.said.append(text)

    def round(self, line):
        self.lines.append(line)


def watching(config, work, first=0):
    """A run's reports on a clock that only the test moves."""
    time, heard = SimpleNamespace(now=50.0), Heard()
    told = Forecasting(heard, lambda: time.now)
    told.begins("run", first, config, work)
    return time, heard, told


def line(number, evaluation_seconds=None):
    known = {"round": number, "evaluation": None, "evaluation_seconds": 0.0}
    return known if evaluation_seconds is None else known | {"evaluation": {}, "evaluation_seconds": evaluation_seconds}


def test_a_long_first_step_is_enough_and_says_at_once_that_rounds_are_slow(config):
    time, heard, told = watching(config("rounds=10", "evaluation.every=2"), TEN)
    time.now += 20
    told.step(1, 50)
    assert heard.forecasts == [Forecast(left=9.99 * 2000 + 5 * 400, round=2000, evaluation=400)]
    (text,) = heard.said
    assert text == (
        "a round will take about 33 min, and each evaluation about 7 min; to make it shorter, lower "
        "training.steps = 2, clients.cohort = 4, data.limit or take a smaller model or a GPU"
    )
    time.now += 20
    told.step(2, 50)
    assert len(heard.said) == 1


def test_a_short_first_step_says_little_because_it_holds_the_start(config):
    time, heard, told = watching(config(), TEN)
    time.now += 3
    told.step(1, 50)
    assert heard.forecasts == []
    time.now += 0.01
    told.step(2, 50)
    assert heard.forecasts == [Forecast(pytest.approx(9.98 + 1), pytest.approx(1), pytest.approx(0.2))]
    assert heard.said == []


def test_rounds_are_measured_without_their_evaluations_and_resumed_ones_do_not_count(config):
    time, heard, told = watching(config("rounds=10"), Work(3, 2, 4, 1), first=7)
    time.now += 30
    told.step(1, 4)
    time.now += 100
    told.round(line(7))
    assert heard.forecasts[-1] == Forecast(left=2 * 130 + 2 * 30, round=130, evaluation=30)
    time.now += 80
    told.round(line(8, 10.0))
    assert heard.forecasts[-1] == Forecast(left=100 + 10, round=100, evaluation=10)
    assert heard.lines[-1] == {**line(8, 10.0), "seconds_left": 110.0, "runs_left": 1}
    told.round(line(9, 10.0))
    assert heard.lines[-1]["seconds_left"] == 0


def test_clients_in_other_processes_count_as_shares_of_the_round(config):
    time, heard, told = watching(config(), TEN)
    time.now += 50
    told.client("fit", 1, 4)
    assert heard.forecasts == [Forecast(left=9.75 * 200 + 5 * 40, round=200, evaluation=40)]


@pytest.mark.parametrize(
    ("changes", "seen", "words"),
    [
        ((), Forecast(0, 500, 99), None),
        ((), Forecast(0, 500, 100), ["training.steps = 2"]),
        (("training.epochs=3",), Forecast(0, 7200, 0), ["about 2 h 0 min", "training.epochs = 3"]),
        (("evaluation.every=2",), Forecast(0, 60, 7200), ["evaluation.limit", "raise evaluation.every = 2"]),
    ],
)
def test_what_makes_a_slow_round_shorter_depends_on_what_is_slow(config, changes, seen, words):
    text = slow_round(config(*changes), seen)
    assert (text is None) == (words is None)
    assert all(word in text for word in words or ())
    assert text is None or ("evaluation.limit" in text) == (seen.evaluation > seen.round / 4)


def test_the_work_of_a_run_is_counted_from_its_rows(config):
    made = build(config("rounds=7", "evaluation.every=3", "evaluation.last=1"))
    work = work_of(made, 3)
    assert (work.rounds, work.evaluations, work.round_steps) == (4, 2, 4 * 2)  # after rounds 6 and 7
    rows = len(made.server.splits["test"]["labels"])
    own = sum(len(columns["labels"]) for client in made.clients.values() for columns in client.splits.values())
    assert work.evaluation_steps == pytest.approx((rows + own) / 8 / 3)
    received = work_of(build(config("rounds=7", "evaluation.clients='received'")), 0)
    assert received.round_steps == pytest.approx(4 * 2 + 4 / 6 * own / 8 / 3)
    assert received.evaluation_steps == pytest.approx(rows / 8 / 3)


def test_a_run_and_a_resumed_one_report_forecasts_down_to_nothing(config, tmp_path):
    class Stopped(Heard):
        def round(self, line):
            super().round(line)
            raise KeyboardInterrupt

    first, rest = Stopped(), Heard()
    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "run", first)
    assert first.lines[0]["seconds_left"] == first.forecasts[-1].left > 0
    resume(tmp_path / "run", progress=rest)
    assert [one["runs_left"] for one in rest.lines] == [1, 1]
    assert rest.lines[0]["seconds_left"] > rest.lines[1]["seconds_left"] == 0
