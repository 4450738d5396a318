"""Reading run files: overrides, variants, paths, the digest, and every error in its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.config.load import NOT_DETERMINING, digest, load, parse, resolved, variants
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError

BASE = """
[model]
name = "tiny:vit"
task = "image-classification"
[data]
source = "sklearn:digits"
"""


@pytest.fixture
def write(tmp_path):
    def written(text: str = "", base: str = BASE) -> Path:
        path = tmp_path / "digits.toml"
        path.write_text(base + text if text.lstrip().startswith("[") else text + base)
        return path

    return written


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_a_small_file_gets_the_recommended_defaults(write):
    config, _ = load(write())
    assert config.name == "digits"
    assert (config.adapter.rank, config.adapter.alpha, config.head.policy) == (16, 16.0, "aggregate")
    training = config.training
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-3, 0)
    assert (training.epochs, training.steps) == (1, None)
    assert config.method.name == "fed-hello"
    assert config.cohort == config.partition.num_clients == 10


def test_an_unknown_key_names_itself_its_value_the_nearest_and_the_allowed(write):
    assert problems(write("[training]\nstesp = 5\n")) == (
        (
            "training.stesp = 5: unknown key (did you mean 'steps'?); allowed: steps, epochs, batch_size, optimizer, "
            "learning_rate, weight_decay, momentum, clip_norm, accumulation, schedule, warmup_rounds, "
            "final_scale, proximal, precision, gradient_checkpointing, packing"
        ),
    )


def test_an_unknown_section_is_an_unknown_key(write):
    (problem,) = problems(write("[trainin]\nsteps = 5\n"))
    assert problem.startswith("trainin = {'steps': 5}: unknown key (did you mean 'training'?); allowed: name, seed, ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('rounds = "5"\n', "rounds = '5': must be a whole number, not text in quotes"),
        ("rounds = 5.0\n", "rounds = 5.0: must be a whole number, not a number with a decimal point"),
        ("rounds = true\n", "rounds = true: must be a whole number, not true or false"),
        ("rounds = 0\n", "rounds = 0: must be at least 1"),
        ("seed = -1\n", "seed = -1: must be at least 0"),
        ("quorum = 1.5\n", "quorum = 1.5: must be at most 1.0"),
        ("name = 3\n", "name = 3: must be text"),
        ('name = "a/b"\n', "name = 'a/b': names a folder, so it must not start with '.' or hold '/' or '\\'"),
        (
            'device = "gpu"\n',
            "device = 'gpu': not a device; allowed: 'auto', 'cpu', 'cuda', 'cuda:0' (and so on), 'mps'",
        ),
        ("seeds = [1, 2, 1]\n", "seeds = [1, 2, 1]: every seed may stand once; [1] stand more often"),
        ("seeds = 1\n", "seeds = 1: must be a list"),
        ("training = 5\n", "training = 5: must be a table of keys"),
        ("[training]\nlearning_rate = 0\n", "training.learning_rate = 0: must be above 0.0"),
        ("[training]\nlearning_rate = nan\n", "training.learning_rate = nan: must be a finite number"),
        ("[training]\nweight_decay = -1\n", "training.weight_decay = -1: must be at least 0.0"),
        ("[training]\nsteps = 5\nepochs = 1\n", "training: steps = 5 and epochs = 1 are both set; keep one of them"),
        (
            '[training]\noptimizer = "adam"\n',
            "training.optimizer = 'adam': not one of the choices (did you mean 'adamw'?); allowed: 'adamw' or 'sgd'",
        ),
        ("[partition]\ntest_fraction = 1.0\n", "partition.test_fraction = 1.0: must be below 1.0"),
        (
            "[partition]\ntest_fraction = 0.5\nvalidation_fraction = 0.5\n",
            (
                "partition: test_fraction 0.5 and validation_fraction 0.5 leave no rows for training; "
                "their sum must be below 1"
            ),
        ),
        ("[clients]\nbudgets = [0, 1, 2]\n", "clients.budgets[0] = 0: must be at least 1"),
        (
            "[clients]\nbudgets = ['50%', '75%', '150%']\n",
            (
                "clients.budgets[2] = '150%': must be a whole number, not text in quotes or must be a share "
                "from '1%' to '100%'"
            ),
        ),
        (
            "[clients]\nbudgets = ['100%', '75%', '50%']\n",
            (
                "clients.budgets = ['100%', '75%', '50%']: must not fall from one group to the next; did you mean "
                "['50%', '75%', '100%']?"
            ),
        ),
        (
            "[clients]\nbudgets = [1, '50%', '75%']\n",
            (
                "clients.budgets = [1, '50%', '75%']: must all be numbers of blocks, or all shares of the model's "
                "blocks such as '50%'"
            ),
        ),
        (
            "[clients]\nbudgets = [12, 9, 6]\n",
            "clients.budgets = [12, 9, 6]: must not fall from one group to the next; did you mean [6, 9, 12]?",
        ),
        (
            "[clients]\nbudgets = [6, 9]\n",
            "clients: shares '1-1-1' make 3 groups but there are 2 budgets [6, 9]; give one budget for each group",
        ),
        (
            '[clients]\nshares = "1:1:1"\n',
            "clients.shares = '1:1:1': must be whole numbers of at least 1 joined by '-', such as '6-3-1'",
        ),
        (
            "[clients]\ncohort = 11\n",
            (
                "clients: cohort = 11 is more than partition.num_clients = 10; "
                "take at most 10, or leave cohort out for all clients"
            ),
        ),
        ("[adapter]\nrank = 0\n", "adapter.rank = 0: must be at least 1"),
        ("[adapter]\ndropout = 1\n", "adapter.dropout = 1: must be below 1.0"),
        ("[adapter]\ntargets = []\n", "adapter.targets = []: must have at least 1 entry"),
        ('[adapter]\ntargets = ["q", 1]\n', "adapter.targets[1] = 1: must be text"),
        (
            '[adapter]\ntargets = "all-lineal"\n',
            (
                "adapter.targets = 'all-lineal': must be a list, not text in quotes or not one of the choices (did you "
                "mean 'all-linear'?); allowed: 'all-linear'"
            ),
        ),
        ('[adapter]\nrank_pattern = {"layers.1" = 0}\n', "adapter.rank_pattern.layers.1 = 0: must be at least 1"),
        (
            '[adapter]\nalpha_pattern = {q = "8"}\n',
            "adapter.alpha_pattern.q = '8': must be a number, not text in quotes",
        ),
        (
            '[adapter]\nrank_pattern = {"(a)*" = 4}\n',
            (
                "adapter: rank_pattern '(a)*': is no module's path, and a regular expression is taken only of names, "
                "'.', '[...]' and '(a|b)', with at most two of '*', '+' and '?', none behind a bracket ')'; write out "
                "the paths"
            ),
        ),
        (
            '[head]\npolicy = "global"\n',
            (
                "head.policy = 'global': not one of the choices (did you mean 'local'?); allowed: 'aggregate', "
                "'local' or 'frozen'"
            ),
        ),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(write, text, problem):
    assert problems(write(text)) == (problem,)


def test_every_problem_is_told_at_once(write):
    found = problems(write('[training]\nstesp = 5\nbatch_size = "x"\n[adapter]\nrank = 0\n'), "head.policy=none", "bad")
    assert [problem.split(":")[0] for problem in found] == [
        "override 'bad'",
        "adapter.rank = 0",
        "head.policy = 'none'",
        "training.batch_size = 'x'",
        found[-1].split(":")[0],
    ]
    assert found[-1].startswith("training.stesp")
    assert str(ConfigError(found)) == "\n".join(found)


def test_what_is_missing_is_named_with_its_table(write):
    assert problems(write(base='[model]\nname = "tiny:vit"\n')) == (
        "model.task: missing; it has no default, so give it under [model]",
        "data: missing; it has no default, so give it under [data]",
    )


def test_bad_toml_names_the_line(write):
    (problem,) = problems(write("rounds = = 5\n", base=""))
    assert "digits.toml: not valid TOML" in problem
    assert "line 1" in problem


def test_files_that_cannot_be_read(tmp_path):
    assert "no such file" in problems(tmp_path / "none.toml")[0]
    assert "cannot be read" in problems(tmp_path)[0]
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    assert "not UTF-8" in problems(tmp_path / "latin.toml")[0]


def test_overrides_are_toml_values_and_bare_words_are_strings(write):
    config, raw = load(
        write(),
        [
            "rounds=7",
            "training.steps=5",
            "method.shape=triangle",
            "method.depth=[1, 2]",
            "seeds=[4,5]",
            "evaluation.clients=false",
            'name="a b"',
            "data.test=hub:owner/name",
            "training.learning_rate = 1",
        ],
    )
    assert (config.rounds, config.training.steps, config.training.epochs) == (7, 5, None)
    assert config.method.settings == {"shape": "triangle", "depth": [1, 2]}
    assert config.seeds == (4, 5)
    assert config.evaluation.clients is False
    assert (config.name, config.data.test, config.training.learning_rate) == ("a b", "hub:owner/name", 1.0)
    assert raw["training"] == {"steps": 5, "learning_rate": 1}


@pytest.mark.parametrize("override", ["training.steps", "=5", "training.=5", "a.b.c=5", ""])
def test_an_override_without_key_or_value_is_refused(write, override):
    assert problems(write(), override) == (
        f"override '{override}': must look like key=value or section.key=value, as in training.steps=5",
    )


@pytest.mark.parametrize("value", ["[1,", '"open', "", "{a=1"])
def test_an_override_with_a_broken_value_is_refused(write, value):
    (problem,) = problems(write(), f"seeds={value}")
    assert problem.startswith(f"override 'seeds={value}': the value cannot be read as TOML")


def test_steps_take_the_place_of_epochs_and_back(write):
    assert load(write("[training]\nepochs = 3\n"), ["training.steps=5"])[0].training.epochs is None
    assert load(write("[training]\nsteps = 3\n"), ["training.epochs=5"])[0].training.steps is None
    (problem,) = problems(write(), "training.epochs=3", "training.steps=5")
    assert "both set" in problem


def test_another_method_or_scheme_drops_the_settings_of_the_old(write):
    path = write(
        '[method]\nname = "fedra"\nshape = "x"\n[partition]\nscheme = "dirichlet"\nalpha = 0.3\nnum_clients = 4\n'
    )
    assert load(path)[0].method.settings == {"shape": "x"}
    assert load(path, ["method.name=fedra"])[0].method.settings == {"shape": "x"}
    config = load(path, ["method.drop=true", "method.name=full", "partition.scheme=iid"])[0]
    assert config.method.settings == {"drop": True}
    assert config.partition.settings == {}
    assert config.partition.num_clients == 4


def test_paths_beside_the_file_are_found_and_others_left_alone(write, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("a\n")
    (tmp_path / "weights").mkdir()
    path = write()
    config, raw = load(path, ["data.source=rows.csv", "data.test=./not-yet.csv", "model.name=weights"])
    assert config.data.source == raw["data"]["source"] == str(tmp_path / "rows.csv")
    assert config.data.test == str(tmp_path / "not-yet.csv")
    assert config.model.name == str(tmp_path / "weights")
    for source in ("sklearn:digits", "hub:owner/name", "elsewhere/rows.csv", "/abs/rows.csv"):
        assert load(path, [f"data.source={source}"])[0].data.source == source
    monkeypatch.setenv("FEDQUILT_DATA", "/somewhere")
    assert load(path, ["data.source=$FEDQUILT_DATA/a.npz"])[0].data.source == "/somewhere/a.npz"
    monkeypatch.delenv("FEDQUILT_DATA")
    (problem,) = problems(path, "data.source=${FEDQUILT_DATA}/a.npz")
    assert problem.startswith(
        "data.source = '${FEDQUILT_DATA}/a.npz': the environment variable FEDQUILT_DATA is not set"
    )


COMPARE = """
[method]
name = "fed-hello"
shape = "triangle"
[training]
epochs = 2
batch_size = 8
[[compare]]
label = "bottleneck"
method = { name = "fed-hello", allocation = "gd" }
[[compare]]
method = { name = "fedra" }
clients = { budgets = [12, 12, 12] }
training = { steps = 3 }
"""


def test_variants_replace_the_method_and_merge_the_rest(write):
    _, raw = load(write(COMPARE))
    (first, a), (second, b) = variants(raw)
    assert (first, second) == ("bottleneck", "fedra")
    assert a["method"] == {"name": "fed-hello", "allocation": "gd"}
    assert b["training"] == {"batch_size": 8, "steps": 3}
    assert parse(b).clients.budgets == (12, 12, 12)
    assert parse(a).clients.budgets == ("50%", "75%", "100%")
    assert "compare" not in a
    assert parse(a).name == "digits"


def test_without_compare_there_is_one_variant_named_by_its_method(write):
    _, raw = load(write())
    ((label, variant),) = variants(raw)
    assert label == "fed-hello"
    assert parse(variant) == load(write())[0]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "methd = { name = 'x' }",
            "compare[0].methd = {'name': 'x'}: unknown key (did you mean 'method'?); allowed: label, ",
        ),
        ("seeds = [1]", "compare[0].seeds = [1]: unknown key; allowed: label, "),
        ("label = 3", "compare[0].label = 3: must be text"),
        ("method = { shape = 'x' }", "compare[0].method: missing name; the table replaces the file's [method]"),
        ("label = 'a'\n[[compare]]\nlabel = 'a'", "compare[1].label = 'a': stands twice; give every entry a label"),
        ("label = 'a'\nadapter = { rank = 0 }", "compare 'a': adapter.rank = 0: must be at least 1"),
        ("adapter = 3", "compare 'fed-hello': adapter = 3: must be a table"),
    ],
)
def test_a_wrong_entry_of_a_comparison_is_told_when_the_file_is_loaded(write, entry, problem):
    (found,) = problems(write(f"[[compare]]\n{entry}\n"))
    assert found.startswith(problem)


def test_variants_of_unchecked_tables_raise_too():
    with pytest.raises(ConfigError, match="stands twice"):
        variants({"compare": [{"label": "a"}, {"label": "a"}]})


def test_compare_that_is_no_list_is_one_problem(write):
    assert problems(write("compare = 3\n")) == ("compare = 3: must be a list",)


def test_resolved_holds_every_key_and_reads_back(write):
    config, _ = load(write(COMPARE), ["training.steps=2"])
    keys = resolved(config)
    assert keys.keys() == set(Config.model_fields) - {"groups", "parties", "server"}
    assert keys["method"] == {"name": "fed-hello", "shape": "triangle"}
    assert keys["training"]["epochs"] is None
    assert parse(json.loads(json.dumps(keys))) == config


def test_parse_tells_every_problem():
    with pytest.raises(ConfigError, match="model: missing") as caught:
        parse({"rounds": 0})
    assert len(caught.value.problems) == 3


def test_the_digest_ignores_what_does_not_determine_the_result(write):
    path = write(COMPARE)
    before = digest(load(path)[0])
    same = ["name=other", "output=elsewhere", "device=cpu", "seeds=[1,2]", "evaluation.last=2", "compare=[]"]
    same += ["network.timeout=9", "network.wait=9", "network.grace=9", "checkpoints.keep=9", "engine.processes=2"]
    keys = [f"ecdsa-sha2-nistp384 {number:A>160}" for number in range(load(path)[0].partition.num_clients)]
    same += [f"network.node_keys={keys}"]
    same += ["track={to='tensorboard', clients=true}"]
    assert {change.split("=")[0] for change in same} == set(NOT_DETERMINING)
    for change in same:
        assert digest(load(path, [change])[0]) == before
    others = {digest(load(path, [c])[0]) for c in ("seed=2", "rounds=2", "method.shape=uniform", "adapter.rank=2")}
    assert len(others | {before}) == 5


def test_the_digest_does_not_depend_on_the_order_or_on_spelling_out_a_default():
    tables = {"model": {"name": "m", "task": "causal-lm"}, "data": {"source": "s"}}
    spelt = {"adapter": {"alpha": 16, "rank": 16}, **dict(reversed(tables.items()))}
    assert digest(parse(tables)) == digest(parse(spelt))


@given(st.text(max_size=20), st.sampled_from(["rounds", "training.steps", "name", "method.x", "x.y"]))
def test_no_override_gets_past_as_anything_but_a_config_error(tmp_path_factory, value, key):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(BASE)
    outcome: object
    try:
        outcome, _ = load(path, [f"{key}={value}"])
    except ConfigError as error:
        outcome = error
    assert isinstance(outcome, Config) or (isinstance(outcome, ConfigError) and all(outcome.problems))


def test_a_config_cannot_be_changed(write):
    config, _ = load(write())
    with pytest.raises(ValueError, match="frozen"):
        config.rounds = 3
