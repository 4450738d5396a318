"""The agreement of models in common coordinates: in the remarks of a report, in the terminal, and as a plot."""

import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.agreement import agreement_of, agreement_words
from fedquilt.report.caveats import notes
from fedquilt.report.figure import png
from fedquilt.report.maps import agreement_plot
from fedquilt.report.pictures import draw
from fedquilt.report.plot import figures
from fedquilt.report.round_text import notices
from fedquilt.report.runs import read_run

FOUND = {"attention.0": 0.5, "head": 0.7}


def made(make_run, round_line, state):
    return read_run(make_run([{**round_line(0, 0.5), "state": state}]))


def test_the_report_names_the_mean_and_the_least_agreement(make_run, round_line):
    run = made(make_run, round_line, {"agreement": FOUND})
    assert agreement_of(run) == FOUND
    assert agreement_words(run).endswith("0.60 between models, the mean over places; the least is 0.50 (attention.0).")
    assert any("common coordinates" in note for note in notes({"fedit": [run]}))
    axes = agreement_plot(run).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.7]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*FOUND]
    assert png(draw({"fedit": [run]}, "agreement"))
    assert "agreement-fedit" in [name for name, _ in figures({"fedit": [run]})]


def test_a_run_without_common_coordinates_has_none(make_run, round_line):
    run = made(make_run, round_line, {})
    assert agreement_words(run) == ""
    with pytest.raises(RunError, match="no agreement was recorded"):
        agreement_plot(run)


def test_places_without_agreement_are_told_in_the_first_round_alone(round_line):
    line = {**round_line(0, 0.5), "state": {"agreement": FOUND, "poor_agreement": ["attention.0"]}}
    assert notices(line) == ["the models do not agree at attention.0: nothing can be shared there"]
    assert notices({**line, "round": 1}) == []
