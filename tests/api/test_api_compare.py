"""Comparisons, plans and checks from Python."""

import pytest
from test_api_run import TINY

import fedquilt
from fedquilt.core.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_methods_are_compared_over_seeds_and_not_run_twice():
    told = []
    wanted = {"methods": ["fedit", {"name": "fedra", "drop_layers": False}], "seeds": (1, 2), "rounds": 2}
    both = fedquilt.compare(TINY, **wanted, progress=told.append)
    assert {label: [run.config.seed for run in runs] for label, runs in both.runs.items()} == {
        "fedit": [1, 2],
        "fedra": [1, 2],
    }
    assert len(told) == 2 * 2 * 2
    again = fedquilt.compare(TINY, **wanted, progress=told.append)
    assert len(told) == 2 * 2 * 2
    assert again.runs == both.runs
    rows = both.table()
    assert [(row["label"], row["seeds"]) for row in rows] == [("fedit", 2), ("fedra", 2)]
    assert "fedra" in repr(both)
    assert both.differences("fedit")[0]["label"] == "fedra"
    with pytest.raises(ConfigError, match="reference = 'fedot': no such label; allowed: fedit, fedra"):
        both.differences("fedot")
    assert len(both.plot().axes[0].lines) >= 2
    html = both._repr_html_()
    assert '<th scope="row">fedra</th>' in html
    assert "no such" not in html
    assert both.page("page.html").read_text().startswith("<!doctype html>")


def test_configs_of_one_label_are_told_apart_by_name():
    one, other = {**TINY, "name": "one"}, {**TINY, "name": "other", "rounds": 1}
    both = fedquilt.compare([one, other], method="fedit", rounds=1)
    assert [*both.runs] == ["one: fedit", "other: fedit"]
    with pytest.raises(ConfigError, match="same label, 'run: fedit'; give each config its own name"):
        fedquilt.compare([TINY, TINY], method="fedit", rounds=1)


def test_labels_in_html_are_escaped():
    told = fedquilt.compare(TINY, rounds=1, compare=[{"label": "<b>", "method": "fedit"}])
    assert "<b>" not in told._repr_html_()
    assert "&lt;b&gt;" in told._repr_html_()


def test_check_lists_every_problem_and_raises_nothing():
    assert fedquilt.check(TINY) == []
    problems = fedquilt.check(TINY, rounds=0, method="fedot", clients={"budgets": (1, 2, 9)})
    for problem, key in zip(problems, ("rounds = 0", "method.name = 'fedot'", "clients.budgets[2] is 9"), strict=True):
        assert problem.startswith(key)
    assert fedquilt.check("nothing.toml")[0].startswith("nothing.toml")


def test_a_plan_has_a_row_for_each_client():
    rows = fedquilt.plan(TINY)
    assert [row["client"] for row in rows] == [*range(6)]
    assert all(row["peak_bytes"] > row["weight_bytes"] > 0 for row in rows)
    heading, _, first, *_ = repr(rows).splitlines()
    assert heading.split()[:2] == ["client", "budget"]
    assert "KB" in first
    assert rows._repr_html_().count("<tr>") == 7


def test_a_plan_has_a_row_for_the_model_that_the_server_owns():
    words = {"name": "tiny:llama?layers=1&width=16", "task": "causal-lm", "max_length": 32}
    data = {"source": "arithmetic:blank?train=12&test=4", "answers": "number"}
    sizes = {"partition": {"num_clients": 2}, "clients": {"shares": "1", "budgets": [1]}}
    rows = fedquilt.plan(model=words, data=data, method="fedcot", server={"model": words, "data": data}, **sizes)
    assert [row["client"] for row in rows] == [0, 1, "server"]
    assert rows[2]["peak_bytes"] > rows[2]["weight_bytes"] > 0
    assert "bytes_up" not in rows[2]
    assert repr(rows).splitlines()[-1].split()[0] == "server"
    assert rows._repr_html_().count("<tr>") == 4
