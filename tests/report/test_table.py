import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.report.paired_differences import paired_rows
from fedquilt.report.runs import read_run
from fedquilt.report.table import as_json, as_markdown, as_text, cells, compare_rows, human_bytes, human_metric, summary


def test_summary_by_hand(make_run, round_line):
    lines = [
        round_line(0, 0.1, {0: 0.0, 1: 0.0}),
        round_line(1, None),
        round_line(2, 0.5, {0: 0.2, 1: 0.8}),
        round_line(3, 0.7, {0: 0.4, 1: 0.7}),
    ]
    lines[3]["exchanges"][0]["dropped"] = {"5": "loss is nan at step 3"}
    row = summary(read_run(make_run(lines)), last=2)
    assert row["metric"] == "accuracy"
    assert row["global"] == pytest.approx(0.6)
    assert row["global_deviation"] == pytest.approx(math.sqrt(0.02))  # (0.01 + 0.01) / (2 - 1)
    assert row["personalised"] == pytest.approx((0.5 + 0.55) / 2)
    assert row["personalised_deviation"] == pytest.approx(0.05 / math.sqrt(2))
    assert row["personalised_weighted"] == pytest.approx((18 / 30 + 18 / 30) / 2)  # 10 and 20 examples
    assert row["worst_client"] == pytest.approx(0.3)
    assert row["lowest_client"] == pytest.approx(0.2)
    assert row["client_spread"] == pytest.approx((0.6 + 0.3) / 2 / math.sqrt(2))
    assert (row["bytes_up"], row["bytes_down"]) == (4 * 1500, 4 * 3000)
    assert (row["seconds"], row["seconds_per_round"]) == (6.0, 1.5)
    assert (row["rounds"], row["dropped"], row["status"]) == (4, 1, "finished")


def test_summary_of_a_run_without_evaluation(make_run, round_line):
    row = summary(read_run(make_run([round_line(0, None)], finished=False)))
    assert [row[key] for key in ("global", "global_deviation", "personalised", "lowest_client")] == [None] * 4
    assert row["status"] == "unfinished"
    assert "0 (unfinished)" not in as_text([row])
    assert "1 (unfinished)" in as_text([row])


def test_one_evaluated_round_has_no_deviation(made):
    row = summary(made("fedit", 1, [0.5]))
    assert row["global"] == 0.5
    assert row["global_deviation"] is None


def test_summary_needs_a_round_to_average(made):
    with pytest.raises(ConfigError, match=r"last = 0 is not allowed; at least 1"):
        summary(made("fedit", 1, [0.5]), last=0)


def test_a_loss_only_run_is_summed_up_by_its_loss(make_run, round_line):
    measured = {"global": None, "clients": {"0": {"loss": 2.0, "examples": 4}, "1": {"loss": 3.0, "examples": 12}}}
    row = summary(read_run(make_run([round_line(0, None, evaluation=measured)])))
    assert row["metric"] == "loss"
    assert (row["personalised"], row["personalised_weighted"], row["lowest_client"]) == (2.5, 2.75, 3.0)
    assert row["worst_client"] == 3.0


def test_compare_by_hand(groups):
    row = compare_rows(groups, last=1)[0]
    assert (row["label"], row["seeds"], row["unfinished"]) == ("fedit", 3, 0)
    assert row["global"] == pytest.approx(0.55)
    assert row["global_deviation"] == pytest.approx(0.05)
    assert row["global_within"] is None  # one round has no deviation inside the run
    assert (row["bytes_up"], row["bytes_down"], row["seconds"]) == (3000, 6000, 3.0)
    both = compare_rows(groups, last=2)[0]
    assert both["global"] == pytest.approx((0.3 + 0.35 + 0.325) / 3)
    assert both["global_within"] == pytest.approx((0.4 + 0.5 + 0.45) / 3 / math.sqrt(2))


def test_one_seed_twice_is_refused(groups):
    doubled = {"fedit": [groups["fedit"][0]] * 2}
    with pytest.raises(RunError, match=r"fedit: two runs have seed 1 \(.*fedit-1 and .*fedit-1\)"):
        compare_rows(doubled)
    with pytest.raises(RunError, match="fedit: no run to report"):
        compare_rows({"fedit": []})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (1_234_567, "1.2 MB"), (999_999, "1.0 MB"), (3.2e9, "3.2 GB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


@given(st.integers(0, 10**17))
def test_human_bytes_keeps_three_digits_before_the_point(count):
    number, unit = human_bytes(count).split()
    factor = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}[unit]
    assert float(number) < 1000
    assert float(number) * factor == pytest.approx(count, rel=0.05)


def test_human_metric():
    assert human_metric(0.8123, "accuracy", 0.009) == "81.2 ± 0.9"
    assert human_metric(0.03, "accuracy", sign=True) == "+3.0"
    assert human_metric(1.23456, "loss", 0.1) == "1.235 ± 0.100"
    assert human_metric(None, "accuracy") == "-"
    assert human_metric(math.nan, "loss") == "nan"


def test_text_forms(groups):
    rows = compare_rows(groups, last=1)
    markdown = as_markdown(rows).splitlines()
    assert markdown[0].startswith(
        "| method | seeds | global, final | global, last 1 | client mean, final |"
    )  # 'std over rounds' has no value here
    assert markdown[1] == "|" + " --- |" * markdown[0].count(" | ") + " --- |"
    assert "| fedit | 3 | 55.0 ± 5.0 | 55.0 ± 5.0 | 55.0 ± 5.0 |" in markdown[2]
    text = as_text(rows).splitlines()
    assert text[0].index("seeds") + 4 == text[2].index("3")
    assert len(text) == 6  # heading, line, four labels
    assert as_markdown([]) == as_text([]) == ""
    paired = cells(paired_rows(groups, ["fedit"], last=1))
    assert paired[1] == ["ours", "fedit", "3", "+4.0", "0.6", "separates"]


def test_a_bar_in_a_label_does_not_break_the_markdown_table(groups):
    assert "| a \\| b | 3 |" in as_markdown(compare_rows({"a | b": groups["fedit"]}))


def test_json_is_strict(groups):
    rows = [*compare_rows(groups), {"label": "x", "global": math.nan}]
    found = json.loads(as_json(rows), parse_constant=pytest.fail)
    assert found[-1]["global"] is None
    assert found[0]["label"] == "fedit"
