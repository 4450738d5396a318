"""The complete comparison as one text."""

import pytest

from fedquilt.core.errors import ConfigError
from fedquilt.report.comparison import comparison
from fedquilt.report.paired_differences import HONEST


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_comparison_says_what_separates(groups, form):
    text = comparison(groups, last=1, references=["fedit"], form=form)
    assert "Paired over seeds against fedit, global accuracy:" in text
    assert "Paired over seeds against fedit, personalised accuracy:" in text
    if form == "markdown":
        assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    text = " ".join(text.split())  # markdown is wrapped
    assert HONEST in text
    assert "not run with the same seeds" in text
    assert text.count("separates") == 3  # ours, globally and personalised, and the explanation
    assert HONEST not in " ".join(comparison(groups, last=1, form=form).split())


def test_comparison_refuses_another_form(groups):
    with pytest.raises(ConfigError, match=r"form = 'latex' is not known; allowed: text, markdown"):
        comparison(groups, form="latex")


def test_the_worst_group_is_compared_on_its_own(grouped):
    ours = [grouped(seed, [{"vit": (0.5, 0.4, 0.6), "bert": (0.7, 0.7, 0.9)}]) for seed in (1, 2)]
    theirs = [grouped(seed, [{"vit": (0.4, 0.4, 0.4), "bert": (0.1, 0.7, 0.9)}]) for seed in (1, 2)]
    text = comparison({"ours": ours, "theirs": theirs}, references=["theirs"])
    assert "Paired over seeds against theirs, worst group, global accuracy:" in text
    assert "+40.0" in text
    assert "worst group" not in comparison({"ours": ours}, references=["ours"]).split("Accuracy (per cent):")[1]
