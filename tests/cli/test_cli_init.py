import json
from pathlib import Path

import pytest
from PIL import Image

from fedquilt.config.load import load

SITES = ("north", "south", "west")


def hospitals():
    """600 rows of three hospitals: every fiftieth has no label, and no row of the west is of class 'severe'."""
    lines = ["patient_id,age,sex,diagnosis,site"]
    for row in range(600):
        site = SITES[row % 3]
        classes = ("mild", "none") if site == "west" else ("mild", "none", "severe")
        label = "" if row % 50 == 0 else classes[row // 3 % len(classes)]
        lines.append(f"p{row},{20 + row % 60},{'fm'[row % 2]},{label},{'' if row == 599 else site}")
    return "\n".join(lines) + "\n"


def test_hospitals_from_a_csv_to_a_first_result(command):
    Path("hospitals.csv").write_text(hospitals())
    said = command("init", "hospitals.csv")
    assert said.code == 0
    assert "written, for tabular-classification (label: diagnosis, site: site); next:\n  fedquilt" in said.out
    assert "note: 12 of 600 rows have no label and are left out\n" in said.out
    assert "note: 1 of 600 rows have no 'site' and are left out\n" in said.out
    assert "note: site 'west' has no row of class 'severe'\n" in said.out
    config, _ = load("hospitals.toml")
    assert (config.model.task, config.data.label, config.data.group) == ("tabular-classification", "diagnosis", "site")
    assert (config.partition.scheme, config.partition.num_clients) == ("natural", 3)
    assert config.data.columns == ("age", "sex")
    assert config.data.on_missing == "drop"
    checked = command("check", "hospitals.toml")
    assert checked.code == 0, checked.err
    assert "left out: data.label = 'diagnosis': no label: 12 rows (" in checked.out
    assert command("run", "hospitals.toml", "--folder", "run", "rounds=1", "training.steps=1").code == 0
    clients = json.loads(Path("run/partition.json").read_text())["clients"]
    assert [one["name"] for one in clients] == [*SITES]
    assert [*clients[2]["labels"]] == ["mild", "none"]
    assert "hospitals.toml: is there already" in command("init", "hospitals.csv").err


def test_what_is_said_is_not_guessed(command):
    Path("hospitals.csv").write_text(hospitals())
    words = ("--label", "sex", "--site", "", "--model", "mlp?layers=2&width=8", "--output", "mine/own.toml")
    assert command("init", "hospitals.csv", *words).code == 0
    config, _ = load("mine/own.toml")
    assert (config.data.label, config.data.group, config.partition.scheme) == ("sex", None, "iid")
    assert config.model.name == "mlp?layers=2&width=8"
    assert Path(config.data.source) == Path("hospitals.csv").absolute()
    assert command("check", "mine/own.toml").code == 0


def pictures():
    for number in range(60):
        folder = Path("pictures") / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    return "pictures"


def sentences():
    lines = [{"sentence": f"a film of {n} minutes" if n else "", "stars": n % 2} for n in range(60)]
    Path("films.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "films.jsonl"


def questions():
    lines = [{"question": f"what is {n} and {n}?", "answer": str(2 * n)} for n in range(60)]
    Path("sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "sums.jsonl"


@pytest.mark.parametrize(
    ("data", "words", "task"),
    [
        (pictures, ("--model", "tiny:vit?layers=2&width=16&image=8&patch=4"), "image-classification"),
        (sentences, ("--text", "sentence"), "sequence-classification"),
        (questions, ("--task", "causal-lm"), "causal-lm"),
    ],
)
def test_pictures_and_texts(command, data, words, task):
    source = data()
    assert command("init", source, *words, "--output", "made.toml").code == 0
    assert load("made.toml")[0].model.task == task
    checked = command("check", "made.toml")
    assert checked.code == 0, checked.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "init: needs the file or folder of the data"),
        (("none.csv",), "there is no file or folder"),
        (("a.csv", "--label", "clas"), "'a.csv' has no column 'clas' (did you mean 'class'?); columns: class, x"),
        (("a.csv", "--task", "image-clasification"), "unknown task (did you mean 'image-classification'?)"),
        (("a.csv", "--label", "x"), "--label: 'x' has 1 class; name the column of the class; columns: class, x"),
        (("f.csv", "--label", "risk"), "--label 'risk': 40 different decimal numbers in 40 rows, such as 0.25, are "),
        (("empty.csv",), "'empty.csv': holds no rows; give data with a header and at least one row for each class"),
        (("head.csv",), "'head.csv': holds no rows"),
    ],
)
def test_what_cannot_be_drafted(command, words, problem):
    Path("a.csv").write_text("class,x\n" + "a,1\nb,1\n" * 10)
    Path("f.csv").write_text("risk,x\n" + "".join(f"{row}.25,1\n" for row in range(40)))
    Path("empty.csv").write_text("")
    Path("head.csv").write_text("class,x\n")
    said = command("init", *words)
    assert said.code == 1
    assert problem in said.err
    assert not Path("a.toml").exists()


def test_a_run_file_that_cannot_be_written_is_named(command):
    Path("a.csv").write_text("class,x\n" + "a,1\nb,1\n" * 10)
    Path("file").write_text("")
    said = command("init", "a.csv", "--output", "file/run.toml")
    assert said.code == 1
    assert "file/run.toml: cannot be written (" in said.err
    assert "; give another file with --output" in said.err


def test_on_a_terminal_it_asks_for_what_was_not_said_with_guesses_as_defaults(command, monkeypatch):
    Path("hospitals.csv").write_text(hospitals())
    asked = {}

    def answered(question, *, default=None, **_):
        asked[question.partition(" (")[0]] = default
        return "-" if question.startswith("Column that says whose") else default

    monkeypatch.setattr("fedquilt.cli.init.on_a_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", answered)
    assert command("init", "hospitals.csv", "--model", "mlp?layers=2&width=8").code == 0
    assert asked == {
        "Task": "tabular-classification",
        "Column of the class": "diagnosis",
        "Column that says whose rows they are": "site",
    }
    config, _ = load("hospitals.toml")
    assert (config.data.group, config.partition.scheme) == (None, "iid")


def test_methods_are_compared_on_the_drafted_file(command):
    Path("hospitals.csv").write_text(hospitals())
    assert command("init", "hospitals.csv").code == 0
    said = command("compare", "hospitals.toml", "rounds=1", "training.steps=1")
    assert said.code == 0, said.err
    assert "each client alone" in said.out
    again = command("report", "runs/hospitals")  # a folder of runs stands for its runs
    assert set(again.out.splitlines()) == set(said.out.splitlines())
    assert "next:\n  fedquilt report runs/hospitals\n  fedquilt export runs/hospitals/averaged-" in said.err
