"""Vertical runs: who has what, scores of the joint prediction, and what is lost without a party."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.comparison import comparison
from fedquilt.report.figure import png
from fedquilt.report.page import page
from fedquilt.report.parties import holdings, joint_rows, kept_of, kept_rows, missing_rows, party_names, table_of
from fedquilt.report.party_plots import alike_plot, gate_plot, holdings_plot, kept_plot
from fedquilt.report.pictures import draw
from fedquilt.report.plot import figures
from fedquilt.report.runs import Run, read_run

CLASSES = ["zero", "one", "two", "three", "four"]


def vertical_line(round_line: Any, number: int, accuracy: float | None) -> dict[str, Any]:
    """A round of two parties; with an accuracy it was evaluated."""
    line: dict[str, Any] = round_line(number, accuracy)
    if accuracy is None:
        return line
    line["evaluation"]["global"] |= {"worst_class": 0.25, "seen": accuracy, "unseen": 0.5, "harmonic": 0.6}
    gate = {"shop": [0.25, 0.5, 0.0, 1.0, 0.5], "bank": [0.75, 0.5, 1.0, 0.0, 0.5]}
    alike = {name: [1.0 if other == name else -0.1 for other in CLASSES] for name in CLASSES}
    kept = {"shop": [0.5, 0.75, None, 1.0, None], "bank": [1.0, None, None, None, None]}
    line["state"] = {"without shop": accuracy - 0.25, "gate": gate, "prototype_cosines": alike, "kept": kept}
    return line


@pytest.fixture
def vertical(make_run: Any, round_line: Any) -> Any:
    """Makes a vertical run of these accuracies, None for a round that was not evaluated."""

    def make(accuracies: list[float | None], folder: str = "run", **more: Any) -> Run:
        lines = [vertical_line(round_line, number, one) for number, one in enumerate(accuracies)]
        path: Path = make_run(lines, folder=folder, method="proto-evfl", num_clients=1, **more)
        partition = json.loads((path / "partition.json").read_text())
        partition["clients"][0] |= {"group": "shop"}
        own = {"active": "bank", "aligned": {"one": 3, "two": 4}, "own": {"three": 7}, "test": 9}
        (path / "partition.json").write_text(json.dumps(partition | {"vertical": own}))
        return read_run(path)

    return make


def test_who_has_what(vertical: Any, learning_run: Any) -> None:
    run = vertical([0.5])
    found = holdings(run)
    assert found is not None
    assert party_names(run) == ["shop", "bank"]
    assert found.classes == tuple(CLASSES)
    assert found.aligned == {"one": 3, "two": 4}
    assert found.own == {"shop": {"zero": 20, "two": 10}, "bank": {"three": 7}}
    assert png(holdings_plot(run)) == png(draw({"proto-evfl": [run]}, "parties"))
    texts = [text.get_text() for text in holdings_plot(run).axes[0].texts]
    assert texts == ["0", "3", "4", "0", "0", "20", "0", "10", "0", "0", "0", "0", "0", "7", "0"]
    other = read_run(learning_run("fedit", 1, 0.8))
    assert holdings(other) is None
    with pytest.raises(RunError, match="is no vertical run"):
        holdings_plot(other)


def test_scores_are_means_over_the_last_evaluated_rounds_and_seeds(vertical: Any) -> None:
    first = vertical([0.5, None, 0.75], "first", evaluation={"last": 1})
    second = vertical([0.75, None, 1.0], "second", seed=2, evaluation={"last": 1})
    (row,) = joint_rows({"proto-evfl": [first, second]})
    assert (row["seeds"], row["accuracy"], row["unseen"], row["worst_class"]) == (2, 0.875, 0.5, 0.25)
    assert row["accuracy_deviation"] == pytest.approx(0.125 * 2**0.5)
    (row,) = joint_rows({"proto-evfl": [first]}, last=2)
    assert row["accuracy"] == 0.625
    (less,) = missing_rows({"proto-evfl": [first, second]})
    assert (less["without"], less["accuracy"], less["lost"]) == ("shop", 0.625, 0.25)


def test_reports_show_both_tables(vertical: Any, learning_run: Any) -> None:
    groups = {"proto-evfl": [vertical([0.5, 0.75], evaluation={"last": 1})]}
    text, whole = comparison(groups), page(groups)
    for words in ("harmonic mean", "worst class", "without", "lost", "shop", "60.0"):
        assert words in text
        assert words in whole
    plain = {"fedit": [read_run(learning_run("fedit", 1, 0.8))]}
    assert joint_rows(plain) == missing_rows(plain) == []
    assert "harmonic" not in comparison(plain) + page(plain)


def test_rows_that_parties_learned_from_are_told_by_class(vertical: Any, learning_run: Any) -> None:
    run = vertical([0.5, None, 0.75])
    assert kept_of(run)["shop"] == {
        **{"zero": [0.5, None, 0.5], "one": [0.75, None, 0.75], "two": [None] * 3, "three": [1.0, None, 1.0]},
        "four": [None] * 3,
    }
    (row,) = kept_rows({"proto-evfl": [run]})  # the bank left no row out
    assert row == {"label": "proto-evfl", "party": "shop", "kept": 0.75, "least": ("zero", 0.5), "most": ("three", 1.0)}
    assert "50.0, zero" in comparison({"proto-evfl": [run]})
    assert [text.get_text() for text in kept_plot(run).axes[0].texts][:5] == ["0.50", "0.75", "", "1.00", ""]
    assert "kept-proto-evfl" in dict(figures({"proto-evfl": [run]}))
    other = read_run(learning_run("fedit", 1, 0.8))
    assert kept_of(other) == {}
    assert kept_rows({"fedit": [other]}) == []
    with pytest.raises(RunError, match="no party left rows out"):
        kept_plot(other)


def test_what_parties_have_learned_is_drawn(vertical: Any, learning_run: Any) -> None:
    run = vertical([0.5, None])
    assert table_of(run, "gate")["shop"] == [0.25, 0.5, 0.0, 1.0, 0.5]
    assert [text.get_text() for text in gate_plot(run).axes[0].texts][:3] == ["0.25", "0.50", "0.00"]
    assert len(alike_plot(run).axes[0].texts) == 25
    drawn = dict(figures({"proto-evfl": [run]}))
    assert {"parties", "gate-proto-evfl", "prototypes-proto-evfl"} <= drawn.keys()
    assert "partition" not in drawn
    other = read_run(learning_run("fedit", 1, 0.8))
    for draw_it, words in ((gate_plot, "no weights of parties"), (alike_plot, "no class prototypes")):
        with pytest.raises(RunError, match=words):
            draw_it(other)
