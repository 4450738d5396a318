"""Paired differences to a reference, seed by seed."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from fedquilt.core.errors import ConfigError
from fedquilt.report.groups import WORST
from fedquilt.report.paired_differences import HONEST, alone, paired_rows, verdict
from fedquilt.report.runs import read_run


def test_paired_by_hand(groups):
    ours, noisy, short = paired_rows(groups, ["fedit"], last=1)
    # differences 0.03, 0.04, 0.05: mean 0.04, deviation 0.01
    assert ours["difference"] == pytest.approx(0.04)
    assert ours["standard_error"] == pytest.approx(0.01 / math.sqrt(3))
    assert (ours["seeds"], ours["verdict"]) == (3, "separates")
    # differences 0.10, -0.10, 0.03
    assert noisy["difference"] == pytest.approx(0.01)
    assert noisy["verdict"] == "within noise"
    assert (short["seeds"], short["verdict"]) == (2, "too few seeds")
    assert short["difference"] == pytest.approx(0.375)
    error = stats.sem([0.10, -0.10, 0.03])
    assert noisy["standard_error"] == pytest.approx(error)


def test_paired_of_a_measure_nobody_has(made, make_run, round_line):
    groups = {"a": [made("a", 1, [0.5])], "b": [read_run(make_run([round_line(0, None)], folder="b", seed=1))]}
    (row,) = paired_rows(groups, ["a"])
    assert (row["seeds"], row["difference"], row["standard_error"], row["verdict"]) == (0, None, None, "too few seeds")


def test_paired_names_what_it_does_not_know(groups):
    with pytest.raises(
        ConfigError, match=r"reference = 'fedti' is not known \(did you mean 'fedit'\?\); one of: fedit"
    ):
        paired_rows(groups, ["fedti"])
    with pytest.raises(ConfigError, match=r"measure = 'worst' is not known.*one of: global, personalised"):
        paired_rows(groups, ["fedit"], measure="worst")


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.randoms())
def test_verdict_does_not_depend_on_order_or_direction(gaps, shuffler):
    turned = [-gap for gap in gaps]
    assert verdict(gaps) == verdict(turned)
    assert verdict(gaps) in ("separates", "within noise")


def test_equal_runs_never_separate():
    assert verdict([0.0, 0.0, 0.0]) == "within noise"
    assert verdict([0.1, 0.1, 0.1]) == "separates"


def test_the_stated_bounds_are_those_of_student():
    bounds = [round(stats.t.ppf(0.975, seeds - 1), 1) for seeds in (3, 5, 10)]
    assert bounds == [4.3, 2.8, 2.3]
    assert "(4.3 standard errors with 3 seeds, 2.8 with 5, 2.3 with 10)" in HONEST


@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=3, max_size=8, unique=True))
def test_the_verdict_is_that_of_the_paired_t_test(gaps):
    chance = stats.ttest_1samp(gaps, 0).pvalue
    assume(abs(chance - 0.05) > 1e-9)
    assert verdict(gaps) == ("separates" if chance < 0.05 else "within noise")


def test_a_label_is_compared_with_the_first_reference_that_had_its_split(made):
    groups = {
        "plain": [made("plain", seed, [0.5], digest="even") for seed in (1, 2)],
        "plain, skewed": [made("skewed", seed, [0.1], digest="skewed") for seed in (1, 2)],
        "ours": [made("ours", seed, [0.6], digest="even") for seed in (1, 2)],
        "ours, skewed": [made("ours-skewed", seed, [0.4], digest="skewed") for seed in (1, 2)],
        "ours, odd": [made("odd", 1, [0.9], digest="other"), made("odd", 2, [0.7], digest="even")],
        "nobody's": [made("nobody", 1, [0.9], digest="other")],
    }
    found = paired_rows(groups, ["plain", "plain, skewed"])
    rows = [(row["label"], row["reference"], row["seeds"], round(row["difference"], 6)) for row in found]
    assert rows == [
        ("ours", "plain", 2, 0.1),
        ("ours, skewed", "plain, skewed", 2, 0.3),
        ("ours, odd", "plain", 1, 0.2),
    ]
    assert alone(groups, ["plain", "plain, skewed"]) == [
        "nobody's: no reference had the same partition, so it is compared with none."
    ]
    assert [row["label"] for row in paired_rows(groups, ["plain"])] == ["ours", "ours, odd"]
    assert paired_rows(groups, []) == []


def test_groups_are_compared_group_by_group_and_the_worst_of_each_run(grouped):
    ours = [grouped(seed, [{"vit": (0.5, 0.4, 0.6), "bert": (0.7, 0.7, 0.9)}]) for seed in (1, 2)]
    theirs = [grouped(seed, [{"vit": (0.4, 0.4, 0.4), "bert": (0.1, 0.7, 0.9)}]) for seed in (1, 2)]
    groups = {"ours": ours, "theirs": theirs}

    def difference(group, measure="global"):
        (row,) = paired_rows(groups, ["theirs"], measure, group=group)
        return row["seeds"], pytest.approx(row["difference"])

    assert difference("vit") == (2, 0.1)
    assert difference("vit", "personalised") == (2, 0.1)
    assert difference(WORST) == (2, 0.4)  # 0.5 of vit, and 0.1 of bert
    assert paired_rows(groups, ["theirs"], group="llama")[0]["seeds"] == 0
