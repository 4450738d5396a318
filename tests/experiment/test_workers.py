"""What a worker process tells of its run."""

from operator import call, methodcaller

import pytest

from fedquilt.experiment.forecast import Forecast
from fedquilt.experiment.workers import Sent, in_workers


def test_a_worker_sends_every_round_with_its_forecast_and_other_forecasts_seldom():
    clock, sent = [0.0], []
    told = Sent(7, sent.append, lambda: clock[0])
    told.stage("a", "loading")
    told.started("a", 0, 2)
    for clock[0] in (0.1, 0.2, 0.3):
        told.client("fit", 1, 2)
        told.step(1, 2)
        told.forecast(Forecast(clock[0], 1, 1))
    told.round({"round": 0})
    told.say("slow")
    told.ended("a")
    assert [(report, *words) for number, report, words in sent if number == 7] == [
        ("stage", "a", "loading"),
        ("started", "a", 0, 2),
        ("forecast", Forecast(0.1, 1, 1)),
        ("forecast", Forecast(0.3, 1, 1)),
        ("round", {"round": 0}),
        ("say", "slow"),
        ("ended", "a"),
    ]


def test_all_is_heard_before_a_job_is_done_and_what_the_hearer_raises_comes_out():
    heard = []

    def hear(number, report, words):
        if words == ("bad",):
            raise KeyError("not understood")
        heard.append((number, report, words))

    jobs = [methodcaller("say", "good"), methodcaller("say", "bad")]
    with pytest.raises(KeyError, match="not understood"):
        in_workers(jobs, call, 1, hear, heard.append)
    assert heard[0] == (0, "say", ("good",))
    assert 1 not in heard
