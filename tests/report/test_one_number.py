"""Every command, the page and the plots show the same number for the same run."""

import json

import pytest
from typer.testing import CliRunner

from fedquilt.cli.app import app
from fedquilt.report.comparison import comparison
from fedquilt.report.page import page
from fedquilt.report.plot import figures, over_rounds
from fedquilt.report.round_text import round_text
from fedquilt.report.runs import group_runs, read_run
from fedquilt.report.scores import WHO, curve, score_of
from fedquilt.report.table import cells, compare_rows, summary

ACCURACIES = [0.10, 0.50, 0.70, 0.80, 0.90, 0.93]


@pytest.fixture
def of_three(make_run, round_line):
    """A run file that asks for the last three evaluated rounds."""
    lines = [round_line(at, value, {0: value - 0.1, 1: value + 0.05}) for at, value in enumerate(ACCURACIES)]
    return make_run(lines, label="ours", method="fedit", evaluation={"last": 3})


def test_every_place_shows_the_mean_over_the_rounds_that_the_run_file_names_and_the_final_model(of_three):
    run = read_run(of_three)
    groups = group_runs([run])
    headline, final = "87.7", "93.0"  # (80 + 90 + 93) / 3, and the last
    row = summary(run)
    assert (f"{100 * row['global']:.1f}", f"{100 * row['final']:.1f}", row["window"]) == (headline, final, 3)
    (compared,) = compare_rows(groups)
    assert (compared["global"], compared["final"]) == (row["global"], row["final"])
    for text in (comparison(groups), comparison(groups, form="markdown"), page(groups)):
        assert headline in text
        assert final in text
        assert "global, last 3" in text
        assert "global, final" in text
        assert "86.1" not in text
    printed = CliRunner().invoke(app, ["report", str(of_three)]).output
    assert headline in printed
    assert final in printed
    listed = json.loads(CliRunner().invoke(app, ["report", "--json", str(of_three)]).output)
    assert (listed[0]["global"], listed[0]["final"], listed[0]["label"]) == (row["global"], row["final"], "ours")
    (line,) = over_rounds(groups).axes[0].get_lines()
    assert list(line.get_ydata()[-3:]) == pytest.approx([80, 90, 93])
    assert "accuracy 93.0%" in round_text(run.rounds[-1])


def test_another_window_may_be_asked_for_and_is_named(of_three):
    groups = group_runs([read_run(of_three)])
    assert "global, last 1" in comparison(groups, last=1)
    said = CliRunner().invoke(app, ["report", "--last", "2", str(of_three)]).output
    assert "global, last 2" in said
    assert "91.5" in said


def test_a_window_is_no_wider_than_the_run(made):
    run = made("fedit", 1, [0.1, 0.5], evaluation={"last": 5})
    assert summary(run)["window"] == 2
    assert "global, last 2" in comparison({"a": [run]})


def test_runs_averaged_over_different_windows_are_noted(made):
    two, three = (made(name, 1, [0.1] * 4, evaluation={"last": last}) for name, last in (("two", 2), ("three", 3)))
    text = comparison({"two": [two], "three": [three]})
    assert "averaged over different numbers of last evaluated rounds (two: 2; three: 3)" in text
    assert "global, last 2-3" in text


def test_an_unfinished_run_has_no_final_model(make_run, round_line):
    run = read_run(make_run([round_line(0, 0.5, {0: 0.5})], finished=False))
    assert summary(run)["final"] is None
    assert "global, final" not in cells(compare_rows({"a": [run]}))[0]


def test_scores_of_a_closing_exchange_are_those_of_the_final_model(make_run, round_line):
    """Between sites nobody else can score a site's rows: 54.2 on receipt before the last round, 87.5 at its end."""
    sent = {"0": {"bytes_up": 10, "bytes_down": 20, "metrics": {"received_accuracy": 0.542, "received_loss": 1.0}}}
    last = round_line(0, None, exchanges=[{"exchange": "fit", "clients": sent, "dropped": {}}])
    folder = make_run([last], label="sites")
    result = json.loads((folder / "result.json").read_text())
    scored = {"bytes_up": 0, "bytes_down": 30, "metrics": {"accuracy": 0.875}}
    result["final"] = {"global": None, "clients": {"0": {"accuracy": 0.875, "loss": 0.3, "examples": 8}}}
    result["closing"] = {"exchanges": [{"exchange": "score", "clients": {"0": scored}}], "messages": {"train.score": 1}}
    (folder / "result.json").write_text(json.dumps(result))
    row = summary(read_run(folder), metric="accuracy")
    assert (row["received"], row["final_personalised"], row["final"]) == (0.542, 0.875, None)
    assert (row["bytes_down"], row["bytes_up"], row["messages"]) == (50, 10, 1)
    table = comparison(group_runs([read_run(folder)]))
    assert "87.5" in table
    assert "54.2" in table


@pytest.mark.parametrize("who", [*WHO])
def test_whatever_a_curve_can_show_can_be_drawn(who, make_run, round_line):
    own = {"0": {"metrics": {"received_accuracy": 0.4}}}
    lines = [
        round_line(at, 0.5, {0: 0.4, 1: 0.6}, exchanges=[{"exchange": "fit", "clients": own, "dropped": {}}])
        for at in range(3)
    ]
    groups = {"a": [read_run(make_run(lines))]}
    axes = over_rounds(groups, who).axes[0]
    assert axes.get_title(loc="left").startswith(WHO[who])
    assert list(axes.get_lines()[0].get_xdata()) == [1, 2, 3]


def test_a_run_whose_clients_score_what_they_receive_is_plotted_and_has_a_page(make_run, round_line):
    own = {"0": {"bytes_up": 1, "bytes_down": 1, "metrics": {"received_accuracy": 0.4, "received_loss": 1.0}}}
    lines = [round_line(at, None, exchanges=[{"exchange": "fit", "clients": own, "dropped": {}}]) for at in range(2)]
    groups = {"a": [read_run(make_run(lines))]}
    names = [name for name, _ in figures(groups)]
    assert {"received-over-rounds", "received-over-bytes"} <= set(names)
    assert 'id="chart-received-over-rounds"' in page(groups)


def test_a_label_of_a_comparison_is_the_runs_in_every_report(make_run, round_line):
    runs = [
        read_run(make_run([round_line(0, 0.5)], folder=f"{label}", label=label, method="fedit"))
        for label in ("small steps", "large steps")
    ]
    assert [*group_runs(runs)] == ["small steps", "large steps"]


def test_site_names_stand_wherever_a_client_does(make_run, round_line):
    lost = [{"exchange": "fit", "clients": {}, "dropped": {"2": "out of memory"}}]
    folder = make_run([round_line(0, 0.5), round_line(1, 0.6, exchanges=lost)], num_clients=3)
    partition = json.loads((folder / "partition.json").read_text())
    for client, name in zip(partition["clients"], ("Basel", "Bern", "Chur"), strict=True):
        client["name"] = name
    (folder / "partition.json").write_text(json.dumps(partition))
    groups = {"a": [read_run(folder)]}
    assert "client Chur dropped in round 2: out of memory" in comparison(groups)
    assert "<td>2</td><td>fit</td><td>Chur</td><td>out of memory</td>" in page(groups)
    drawn = dict(figures(groups))
    for name in ("partition", "allocation-a"):
        ticks = [tick.get_text() for tick in drawn[name].axes[0].get_xticklabels()]
        assert ticks == ["Basel", "Bern", "Chur"]


def test_probabilities_are_labelled_as_those_of_the_first_draw(learning_run):
    drawn = dict(figures({"a": [read_run(learning_run("fed-hello", 1, 0.8))]}))
    words = [text.get_ylabel() for text in drawn["probabilities-a"].axes]
    assert "probability of being drawn first (sum 1 per round)" in words
    assert all("drawn first" in word for word in words if "probability" in word)


@pytest.mark.parametrize("who", [*WHO])
def test_a_line_and_a_curve_have_one_source(who, of_three):
    run = read_run(of_three)
    assert curve(run, "accuracy", who)[1] == [
        value for line in run.rounds if (value := score_of(line, "accuracy", who)) is not None
    ]
