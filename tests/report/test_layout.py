"""Tables as text of a given width: no number is cut or folded, and no line is longer than asked."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.report.comparison import comparison
from fedquilt.report.layout import laid_out, wrapped

WIDTHS = (80, 100, 120)
LABELS = ("fedit", "one of two factors averaged, with the server's optimiser", "each client alone")


@pytest.fixture
def compared(made):
    return {label: [made(f"m{at}", seed, [0.1, 0.5 + seed / 50]) for seed in (1, 2)] for at, label in enumerate(LABELS)}


def numbers(text):
    """The numbers of the tables above the remarks, wherever they stand."""
    return sorted(re.findall(r"\d+\.\d+(?: ± \d+\.\d+| [KM]?B)?", text.partition("\n- ")[0]))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_the_terminal_and_keeps_every_number(compared, width):
    text = comparison(compared, references=["fedit"], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert numbers(text) == numbers(comparison(compared, references=["fedit"]))
    assert len(numbers(text)) > 30


def test_a_piped_table_has_one_line_a_row(compared):
    lines = comparison(compared).splitlines()
    assert sum(line.startswith("one of two factors averaged, with the server's optimiser  ") for line in lines) == 3


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_columns_have_the_names_of_the_field_and_are_explained(compared, form):
    text = " ".join(comparison(compared, form=form).split())
    for title in ("client mean, final", "weighted by rows", "worst client", "std over clients", "std over rounds"):
        assert title in text
    assert "std over clients: standard deviation of the clients' scores" in text
    assert "before training" not in text  # nothing was measured on receipt, so nothing is explained


def test_headings_are_folded_first_then_names_then_columns_go_below():
    table = [["method", "mean accuracy", "std over clients"], ["averaged adapters", "81.2 ± 0.9", "10.1 ± 0.2"]]
    assert laid_out(table).splitlines() == [
        "method             mean accuracy  std over clients",
        "─────────────────  ─────────────  ────────────────",
        "averaged adapters     81.2 ± 0.9        10.1 ± 0.2",
    ]
    assert laid_out(table, 41).splitlines() == [
        "method                   mean    std over",
        "                     accuracy     clients",
        "─────────────────  ──────────  ──────────",
        "averaged adapters  81.2 ± 0.9  10.1 ± 0.2",
    ]
    assert laid_out(table, 34).splitlines()[3:] == ["averaged  81.2 ± 0.9  10.1 ± 0.2", "adapters"]
    below = laid_out(table, 24).splitlines()
    assert [line.split()[-1] for line in below if "±" in line] == ["0.9", "0.2"]
    assert max(map(len, below)) <= 24


@given(
    st.lists(st.lists(st.text("ab -1.±", max_size=30), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(40, 130),
)
def test_any_table_can_be_laid_out(table, width):
    text = laid_out(table, width)
    cells = [cell for line in table[1:] for cell in line]
    kept = re.sub(r"\s", "", text)
    assert all(letter in kept for cell in cells for letter in re.sub(r"\s", "", cell))
    assert laid_out([["", ""], ["", ""]], width) == laid_out([["", ""], ["", ""]])


def test_sentences_are_folded_between_words():
    assert wrapped("one-two three four", 12, "- ") == "- one-two\n  three four"
    assert wrapped("one two", None, "- ") == "- one two"
