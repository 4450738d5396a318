"""Scores of each group and of the worst group."""

import json
from dataclasses import replace

import pytest

from fedquilt.report.comparison import comparison
from fedquilt.report.groups import group_curve, group_labels, group_rows
from fedquilt.report.page import page
from fedquilt.report.round_text import round_text
from fedquilt.report.scores import main_metric
from fedquilt.report.table import cells


@pytest.fixture
def two(grouped):
    first = grouped(1, [{"vit": (0.5, 0.4, 0.6), "bert": (0.7, 0.7, 0.9)}])
    second = grouped(2, [{"vit": (0.9, 0.8, 0.8), "bert": (0.3, 0.2, 0.4)}])
    return [first, second]


def test_a_group_has_a_curve_of_its_own_model_and_one_of_its_clients(grouped):
    run = grouped(1, [{"vit": (0.5, 0.4, 0.6), "bert": (None, 0.7, None)}] * 2)
    assert group_labels(run) == ["vit", "bert"]
    assert group_curve(run, "vit", "accuracy", "global") == ([0, 1], [0.5, 0.5])
    assert group_curve(run, "vit", "accuracy", "clients") == ([0, 1], [0.5, 0.5])
    assert group_curve(run, "bert", "accuracy", "global") == ([], [])
    assert group_curve(run, "bert", "accuracy", "clients")[1] == [0.7, 0.7]
    assert main_metric(run) == "accuracy"


def test_the_worst_group_is_found_in_each_run_anew(two):
    vit, bert, worst = group_rows({"fedit": two}, "accuracy")
    assert [row["group"] for row in (vit, bert, worst)] == ["vit", "bert", "worst group"]
    assert vit["global"] == pytest.approx(0.7)
    assert vit["global_deviation"] == pytest.approx(0.4 / 2**0.5)
    assert bert["personalised"] == pytest.approx(0.55)
    assert worst["global"] == pytest.approx(0.4)  # 0.5 of the one run, 0.3 of the other
    assert worst["personalised"] == pytest.approx(0.4)
    *_, loss = group_rows({"fedit": two}, "loss")
    assert loss["global"] == pytest.approx(0.6)


def test_only_the_last_rounds_count_and_nothing_is_made_up(grouped):
    rounds = [{"vit": (0.1, 0.1, 0.1), "bert": (None, 0.1, 0.1)}, {"vit": (0.5, 0.4, 0.6), "bert": (None, 0.7, 0.9)}]
    vit, bert, worst = group_rows({"a": [grouped(1, rounds)]}, "accuracy", last=1)
    assert (vit["global"], bert["global"], worst["global"]) == (0.5, None, None)
    assert worst["personalised"] == pytest.approx(0.5)
    assert worst["personalised_deviation"] is None


def test_tables_and_the_page_show_the_groups_and_runs_without_groups_show_none(two, grouped):
    text = comparison({"fedit": two})
    assert "Group by group:" in text
    assert "worst group" in text
    assert cells(group_rows({"fedit": two}, "accuracy"))[0] == [
        *("method", "group", "seeds", "global, final", "global, last 1", "client mean, final", "client mean, last 1")
    ]
    assert "Group by group" in page({"fedit": two})
    bare = grouped(3, [{}], labels=())
    assert group_rows({"fedit": [bare]}, "accuracy") == []
    assert "Group by group" not in comparison({"fedit": [bare]})


def test_it_is_said_that_a_method_ran_apart(two):
    said = "fedit: ran separately in each of 2 architectures; nothing was shared between them."
    assert said not in comparison({"fedit": two})
    separate = [replace(run, environment={"apart": ["vit-4x8", "bert-2x16"]}) for run in two]
    assert said in comparison({"fedit": separate})


def test_a_round_in_words_names_the_worst_group(two):
    assert "worst group vit 50.0%" in round_text(json.loads(json.dumps(two[0].rounds[0])))
