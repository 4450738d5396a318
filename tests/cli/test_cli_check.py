import json
from pathlib import Path

import pytest

COMPARED = """
[[compare]]
label = "one"
method = { name = "fedit" }

[[compare]]
label = "two"
method = { name = "fedra", coverage = 3 }
"""


def problems(said):
    assert said.code == 1
    assert said.out == ""
    return [line.removeprefix("error: ") for line in said.err.splitlines()]


def test_a_sound_file_is_told_to_be_sound(command):
    assert command("check", "tiny.toml") == (0, "tiny.toml: no problem found\n", "")
    assert not Path("runs").exists()


def test_mistakes_in_keys_do_not_hide_those_in_data_model_and_method(command):
    said = command(
        "check",
        "tiny.toml",
        *("training.stepz=3", "rounds=many", "training.batch_size=0", "method.name=fed-hullo", "data.source=nope.tsv"),
        *("clients.budgets=[1,2,9]", "device=cuda:9", "partition.beta=2"),
    )
    found = problems(said)
    assert [problem.split(" ")[0].rstrip(":") for problem in found] == [
        *("rounds", "training.batch_size", "training.stepz", "method.name", "partition.beta", "data.source", "device"),
        "clients.budgets[2]",
    ]


def test_what_a_missing_section_hides_is_left_out(command):
    Path("bare.toml").write_text("rounds = 0\n[data]\nsource = 'sklearn:digits'\n")
    assert problems(command("check", "bare.toml")) == [
        "rounds = 0: must be at least 1",
        "model: missing; it has no default, so give it under [model]",
    ]


def test_a_variable_that_is_not_set_is_told_once(command, monkeypatch):
    monkeypatch.delenv("FEDQUILT_DATA", raising=False)
    (one,) = problems(command("check", "tiny.toml", "data.source=$FEDQUILT_DATA/mnist.npz"))
    assert one.startswith("data.source = '$FEDQUILT_DATA/mnist.npz': the environment variable FEDQUILT_DATA is not set")


def test_every_variant_of_a_comparison_is_checked_and_named(command, tiny):
    tiny.write_text(tiny.read_text() + COMPARED)
    assert problems(command("check", "tiny.toml")) == ["compare 'two': method.coverage = 3: must be true or false"]
    both = problems(command("check", "tiny.toml", "clients.budgets=[1,2,9]"))
    assert len(both) == 2
    assert both[0].startswith("clients.budgets[2] is 9")
    assert both[1].startswith("compare 'two': ")


@pytest.mark.parametrize(("changes", "count"), [((), 0), (("training.stepz=1", "device=cuda:9"), 2)])
def test_json_holds_the_problems_and_nothing_else(command, changes, count):
    said = command("check", "tiny.toml", *changes, "--json")
    assert said.code == (1 if count else 0)
    assert said.err == ""
    found = json.loads(said.out)
    assert found["config"] == "tiny.toml"
    assert len(found["problems"]) == count
    said = command("check", "nowhere.toml", "--json")
    assert (said.code, len(json.loads(said.out)["problems"])) == (1, 1)
