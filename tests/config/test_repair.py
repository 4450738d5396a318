"""What is wrong is told once, and what stands in for it is blamed for nothing."""

from __future__ import annotations

import pytest

from fedquilt.config.load import examine
from fedquilt.core.errors import ConfigError

BASE = """
[model]
name = "tiny:vit?layers=3"
task = "image-classification"
[data]
source = "sklearn:digits"
limit = 200
"""


@pytest.fixture
def checked(tmp_path):
    """``checked(text, *overrides)``: every problem that ``fedquilt check`` tells."""
    from fedquilt.cli.check import check

    def found(text: str, *overrides: str) -> list[str]:
        path = tmp_path / "file.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            check(path, list(overrides), None, False)
        return list(caught.value.problems)

    return found


@pytest.mark.parametrize(
    "budgets", ["0", "'x'", "[0, 1, 2]", "[1, 2, 1000000000000]", "[1, 2, 99999999999999999999]", "[]"]
)
def test_a_refused_budget_brings_no_word_on_the_default(checked, budgets):
    problems = checked(f"{BASE}[clients]\nbudgets = {budgets}\n")
    assert all(problem.startswith("clients.budgets") for problem in problems)
    assert not [problem for problem in problems if "is 9" in problem or "is 6" in problem]
    assert len(problems) == 1


def test_a_refused_key_leaves_the_other_sections_to_be_checked(checked):
    problems = checked(
        f"{BASE}[clients]\nbudgets = 'x'\n[method]\nname = 'fed-hell'\n[partition]\nscheme = 'dirichlet'\nalpah = 1\n"
        "num_clients = -3\ntest_fraction = 0.7\nvalidation_fraction = 0.7\n"
    )
    assert [problem.partition(":")[0].partition(" =")[0] for problem in problems] == [
        "partition.num_clients",
        "clients.budgets",
        "partition",
        "method.name",
        "partition.alpah",
        "partition.alpha",
    ]


@pytest.mark.parametrize("missing", ["model", "data", "both", "broken", "dates"])
def test_without_a_model_or_data_all_else_is_told(checked, missing):
    texts = {
        "model": "[data]\nsource = 'sklearn:digits'\n",
        "data": "[model]\nname = 'tiny:vit'\ntask = 'image-classification'\n",
        "both": "",
        "broken": "model = 3\n[data]\nsource = 3\n",
        "dates": "[model]\nname = 1979-05-27\ntask = 'image-classification'\n[data]\nsource = 'sklearn:digits'\n",
    }
    problems = checked(
        f"{texts[missing]}[partition]\nscheme = 'dirichlett'\n[method]\nname = 'fedit'\nshap = 'triangle'\n"
        "[privacy]\nmode = 'nowhere'\n[[groups]]\nlabel = 'a'\nbudget = 1\n[[groups]]\nlabel = 'a'\nbudget = 2\n"
    )
    told = "\n".join(problems)
    for words in ("method.shap = 'triangle'", "privacy.mode = 'nowhere'", "groups[1].label = 'a': stands twice"):
        assert words in told
    problems = checked(f"{texts[missing]}[partition]\nscheme = 'dirichlett'\n[method]\nname = 'fedti'\n")
    told = "\n".join(problems)
    assert "partition.scheme = 'dirichlett'" in told
    assert "method.name = 'fedti': unknown method (did you mean 'fedit'?)" in told
    assert "tiny:vit" not in told


def test_spoilt_keys_are_those_that_were_wrong(tmp_path):
    path = tmp_path / "file.toml"
    path.write_text(f"{BASE}[clients]\nbudgets = 'x'\n[[groups]]\nlabel = 'a'\nmodel = {{name = 3}}\n")
    (_, config), *_ = examine(path)[1]
    assert config.spoilt.touches("clients", "nothing")
    assert config.spoilt.touches("clients.budgets")
    assert not config.spoilt.touches("clients.cohort")
    assert not config.spoilt.touches("model")
    assert config.spoilt.in_group(0).touches("model.name")
    assert config.spoilt.in_group(0).touches("budget")


LAB = f"""{BASE}
[clients]
budgets = [1, 2, 3]
[method]
name = "fedit"
[[compare]]
method = {{ name = "fedit" }}
[[compare]]
method = {{ name = "fedra", weighting = "examples" }}
training = {{ steps = 3 }}
"""


def test_an_override_of_the_method_reaches_the_entries_that_do_not_say_otherwise(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    problems, made = examine(path, ["method.weighting=uniform", "training.steps=7"])
    assert problems == []
    assert [config.method.settings["weighting"] for _, config in made] == ["uniform", "examples"]
    assert [config.training.steps for _, config in made] == [7, 3]


@pytest.mark.parametrize("override", ["method.name=nonsense", "method.name=full"])
def test_an_override_that_nothing_would_come_of_is_refused(checked, override):
    problems = checked(LAB, override)
    assert any(
        problem.startswith(f"override method.name = '{override.partition('=')[2]}': every entry of [[compare]]")
        for problem in problems
    )


def test_the_method_that_entries_stand_in_place_of_is_checked_too(checked):
    problems = checked(LAB.replace('name = "fedit"', 'name = "fedti"', 1))
    assert problems == [problem for problem in problems if problem.startswith("method.name = 'fedti'")]
    assert len(problems) == 1


def test_an_override_that_every_group_says_otherwise_is_refused(checked, tmp_path):
    text = f"{BASE}[method]\nname = 'fedit'\n"
    text += "".join(f"[[groups]]\nlabel = '{n}'\nbudget = 1\ntraining = {{ steps = {n} }}\n" for n in (1, 2))
    assert checked(text, "training.steps=5")[0].startswith("override training.steps = 5: every group")
    assert checked(text, "training.epochs=5")[0].startswith("override training.epochs = 5: every group")
    (tmp_path / "other.toml").write_text(text)
    assert examine(tmp_path / "other.toml", ["training.steps=2", "training.batch_size=4"])[0] == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[training]\nmomentum = 0.9\n", "training.momentum = 0.9: is of training.optimizer = 'sgd' alone"),
        (
            "[training]\nfinal_scale = 0.5\n",
            "training.final_scale = 0.5: is of training.schedule = 'linear'",
        ),
        ("[aggregation]\ntrim_share = 0.2\n", "aggregation.trim_share = 0.2: is of aggregation.rule = 'trimmed-mean'"),
        ("[aggregation]\nserver_tau = 0.1\n", "aggregation.server_tau = 0.1: is of aggregation.server_optimizer"),
        (
            "[privacy]\nnoise_multiplier = 2\n",
            "privacy.noise_multiplier = 2.0: is of privacy.mode = 'central'",
        ),
    ],
)
def test_a_key_that_nothing_would_come_of_is_refused(tmp_path, text, key):
    path = tmp_path / "idle.toml"
    path.write_text(BASE + text)
    (problem,) = examine(path)[0]
    assert problem.startswith(key)


def test_a_changed_choice_takes_along_what_belonged_to_the_old(tmp_path):
    path = tmp_path / "sgd.toml"
    path.write_text(f"{BASE}[training]\noptimizer = 'sgd'\nmomentum = 0.9\n")
    assert examine(path)[0] == []
    problems, made = examine(path, ["training.optimizer=adamw"])
    assert problems == []
    assert made[0][1].training.momentum == 0


def test_a_rank_that_does_not_go_with_the_kind_leaves_the_rest_to_be_checked(checked):
    problems = checked(
        f"{BASE}[clients]\nbudgets = [1, 2, 3]\n[adapter]\nkind = 'full'\nrank = 4\n[method]\nname = 'fed-hell'\n"
    )
    assert [problem.partition(" ")[0] for problem in problems] == ["adapter:", "method.name"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"label = 0x{'f' * 5000}", "compare[0].label = an integer of 20000 bits: must be text"),
        (f"label = [[0x{'f' * 5000}]]", "compare[0].label = a list that holds an integer of thousands of digits"),
        ("label = 'one'\nadapter = { kind = ['lora'] }", "compare 'one': adapter.kind"),
    ],
)
def test_values_of_any_kind_in_an_entry_of_a_comparison_are_named(checked, text, key):
    assert any(problem.startswith(key) for problem in checked(f"{BASE}[[compare]]\n{text}\n"))
