"""The spent epsilon is in the tables and the caveats, with its assumptions."""

import json

import pytest

from fedquilt.report.caveats import notes
from fedquilt.report.page import page
from fedquilt.report.runs import privacy, read_run
from fedquilt.report.table import as_json, as_text, cells, compare_rows, summary


def spent(epsilon, known=None, **more):
    known = epsilon if known is None else known
    found = {"mode": "central", "epsilon": epsilon, "epsilon_known_cohorts": known, "delta": 1e-5, "releases": 2}
    return found | {"test_key": False} | more


@pytest.fixture
def made(make_run, round_line):
    def make(folder, seed, *costs):
        lines = [round_line(at, 0.5, privacy=cost) for at, cost in enumerate(costs)]
        return read_run(make_run(lines, folder=folder, seed=seed))

    return make


def test_the_last_round_says_what_was_spent(made):
    run = made("one", 1, spent(1.0), spent(1.5, 4.0))
    # a record of before 4.00 was put first: 1.50 counts on secrets that the seed gives away
    assert privacy(run)["epsilon"] == 4.0
    assert summary(run)["epsilon"] == 4.0
    assert "4.00" in as_text([summary(run)])
    assert privacy(made("plain", 1, None)) is None


def test_runs_without_privacy_have_no_such_column(made, make_run, round_line):
    before = read_run(make_run([round_line(0, 0.5)], folder="before"))  # a record from before there was any
    for run in (before, made("plain", 1, None)):
        assert summary(run)["epsilon"] is None
        assert "epsilon" not in cells([summary(run)])[0]
        assert notes({"plain": [run]}) == []


def test_seeds_are_summed_up_by_the_worst_and_no_bound_is_worse_than_any(made):
    runs = [made("a", 1, spent(1.5)), made("b", 2, spent(2.5))]
    (row,) = compare_rows({"ours": runs})
    assert row["epsilon"] == 2.5
    (row,) = compare_rows({"ours": [*runs, made("c", 3, spent(None))]})
    assert "inf" in as_text([row])
    assert json.loads(as_json([row]))[0]["epsilon"] is None


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (spent(1.5), "ours: central differential privacy of whole clients: epsilon 1.50 at delta 1e-05. Evaluation is"),
        (
            spent(4.0, epsilon_secret_cohorts=1.5),
            "epsilon 4.00 at delta 1e-05 (1.50 as long as only the server knows who took part in which round; this",
        ),
        (spent(1.5, 4.0), "epsilon 4.00 at delta 1e-05. Evaluation is not covered: scores on clients' own rows are"),
        (spent(1.5, mode="local", test_key=True), "local differential privacy"),
        (spent(1.5, test_key=True), "drawn from a test key and protects nothing against those who know the key"),
        (spent(None), "updates were clipped but no noise was added, so there is no differential privacy."),
    ],
)
def test_the_note_says_what_the_number_counts_on(made, cost, text):
    run = made("noted", 1, cost)
    (note,) = notes({"ours": [run]})
    assert text in note
    assert "differential privacy" in page({"ours": [run]})
