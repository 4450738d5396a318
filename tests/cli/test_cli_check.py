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


def test_rows_that_are_left_out_are_told_and_recorded(command):
    Path("rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(60)) + "more,\n,1\n")
    changes = ("model.name=tiny:bert", "model.task=sequence-classification", "data={source='./rows.csv'}")
    changes += ("partition={num_clients=4}", "clients={budgets=[1,1,2]}", "model.max_length=16")
    problem, *_ = problems(command("check", "tiny.toml", *changes))
    assert "1 row cannot be used; repair or remove it, or leave it out with data.on_missing = 'drop'" in problem
    told = command("check", "tiny.toml", *changes, "data.on_missing=drop")
    assert told.code == 0
    assert "note: data.on_missing = 'drop': left out: data.text = 'text': an empty text: 1 row (" in told.out
    assert "no label: 1 row (" in told.out
    assert command("run", "tiny.toml", "--folder", "run", "rounds=1", *changes, "data.on_missing=drop").code == 0
    missing = json.loads(Path("run/partition.json").read_text())["missing"]
    assert [(one["what"].split(": ")[1], one["rows"]) for one in missing] == [("an empty text", 1), ("no label", 1)]


def test_empty_texts_are_told_of(command):
    Path("rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(60)) + ",1\n")
    changes = ("model.name=tiny:bert", "model.task=sequence-classification", "data={source='./rows.csv'}")
    said = command("check", "tiny.toml", *changes, "partition={num_clients=4}", "clients={budgets=[1,1,2]}")
    assert said.code == 0
    assert "1 of 61 rows have an empty text (" in said.out


SHORTEST = """
rounds = 2
model = { name = "tiny:vit?layers=6&width=16&image=8&patch=4", task = "image-classification" }
data = { source = "sklearn:digits", limit = 200 }
training = { steps = 1, batch_size = 4 }
"""


def test_the_shortest_run_file_runs_with_the_default_method_and_budgets(command):
    Path("short.toml").write_text(SHORTEST)
    assert command("check", "short.toml") == (0, "short.toml: no problem found\n", "")
    assert command("run", "short.toml", "--folder", "run").code == 0
    clients = json.loads(Path("run/partition.json").read_text())["clients"]
    assert [one["budget"] for one in clients] == [3, 3, 3, 5, 5, 5, 6, 6, 6, 6]
    config = json.loads(Path("run/config.json").read_text())
    assert config["clients"]["budgets"] == ["50%", "75%", "100%"]
    rounds = [json.loads(line) for line in Path("run/rounds.jsonl").read_text().splitlines()]
    assert len(rounds[-1]["state"]["scores"]) == 6  # the clients' scores of the layers


def test_what_the_server_scores_needs_rows_where_it_is_asked_for(command):
    Path("short.toml").write_text(SHORTEST)
    (problem,) = problems(command("check", "short.toml", "method.scores_from=server"))
    assert "the server has no rows of its own" in problem


WRONG = """
[model]
nam = "tiny:bert"
task = "sequence-clasification"
[data]
source = "./visits.csv"
text = "notes"
label = "departement"
[training]
steps = "ten"
[method]
name = "fedavg"
"""


@pytest.mark.parametrize("task", ["sequence-clasification", "sequence-classification"])
def test_a_wrong_section_hides_none_of_another_and_each_mistake_is_told_once(command, task):
    Path("visits.csv").write_text("note,department\n" + "a b,x\nc d,y\n" * 20)
    Path("wrong.toml").write_text(WRONG.replace("sequence-clasification", task))
    lines = command("check", "wrong.toml").err.splitlines()
    for start in ("model.name: missing", "model.nam = ", "training.steps = 'ten'", "method.name = 'fedavg'"):
        assert sum(line.startswith(f"error: {start}") for line in lines) == 1
    for key, meant in {"notes": "'note'", "departement": "'department'"}.items():
        (line,) = (line for line in lines if f"'{key}'" in line)
        assert f"(did you mean {meant}?)" in line
    assert sum(line.startswith("error: model.task") for line in lines) == (task == "sequence-clasification")
