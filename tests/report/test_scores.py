"""Curves of a run's scores."""

import numpy as np
import pytest

from fedquilt.core.errors import ConfigError
from fedquilt.report.runs import read_run
from fedquilt.report.scores import curve, main_metric


def test_curves_by_hand(make_run, round_line):
    # clients 0, 1, 3 hold 10, 20, 40 test examples
    lines = [round_line(0, 0.5, {0: 0.2, 1: 0.5, 3: 0.8}), round_line(1, None), round_line(2, None, {0: 0.4})]
    run = read_run(make_run(lines))
    assert curve(run) == ([0], [0.5])  # round 1 was not evaluated, round 2 has no global value
    rounds, values = curve(run, who="clients-mean")
    assert rounds == [0, 2]
    assert values == pytest.approx([0.5, 0.4])
    assert curve(run, who="clients-weighted")[1] == pytest.approx([(2 + 10 + 32) / 70, 0.4])
    assert curve(run, who="clients-worst")[1] == pytest.approx([0.2, 0.4])
    assert curve(run, who="clients-deviation") == ([0], pytest.approx([0.3]))  # sqrt((0.09 + 0 + 0.09) / 2)
    assert curve(run, "loss", "clients-worst")[1] == pytest.approx([1.8, 1.6])  # the highest loss is the worst
    assert curve(run, "perplexity") == ([], [])


def test_a_null_value_is_not_finite_rather_than_absent(make_run, round_line):
    lost = {"global": {"accuracy": 0.1, "loss": None, "examples": 5}, "clients": {}}
    run = read_run(make_run([round_line(0, None, evaluation=lost)]))
    rounds, values = curve(run, "loss")
    assert rounds == [0]
    assert np.isnan(values[0])
    assert curve(run, who="clients-mean") == ([], [])


def test_an_unknown_who_is_explained(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5)]))
    with pytest.raises(ConfigError, match=r"who = 'clients-wurst' is not known \(did you mean 'clients-worst'\?\)"):
        curve(run, who="clients-wurst")


def test_main_metric(make_run, round_line):
    with_loss = {"global": None, "clients": {"0": {"loss": 2.0, "examples": 4}}}
    assert main_metric(read_run(make_run([round_line(0, None), round_line(1, 0.4)], folder="a"))) == "accuracy"
    assert main_metric(read_run(make_run([round_line(0, None, evaluation=with_loss)], folder="b"))) == "loss"
    assert main_metric(read_run(make_run([round_line(0, None)], folder="c"))) == "accuracy"
