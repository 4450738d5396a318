"""Language tasks as a run file asks for them: answers by group, rows that do not fit, and a whole run."""

import json
import re

import pytest

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.run import run
from fedquilt.record import read_rounds

HEAD = """
seed = 3
rounds = 2
device = "cpu"
threads = 1

[model]
name = "tiny:llama?layers=2&width=16"
task = "causal-lm"
max_length = 160

[data]
source = "arithmetic:blank?train=24&test=6"
answers = "number"
new_tokens = 4

[partition]
num_clients = 4
test_fraction = 0.25

[clients]
shares = "1"
budgets = [2]

[adapter]
rank = 2

[training]
steps = 2
batch_size = 4

[method]
name = "fedit"
"""
GROUPS = """
[[groups]]
label = "fill"
budget = 2

[[groups]]
label = "choose"
budget = 1
data = {source = "arithmetic:choice?train=20&test=5&split=new-words", answers = "letter", new_tokens = 2}
"""
NO_CLIENTS = HEAD.replace('[clients]\nshares = "1"\nbudgets = [2]\n', "")


@pytest.fixture
def config(tmp_path):
    """``config(text, *changes)``: the config of a run file in an empty folder."""

    def made(text=HEAD, *changes):
        (tmp_path / "words.toml").write_text(text, encoding="utf-8")
        return load(tmp_path / "words.toml", changes)[0]

    return made


def test_each_group_is_judged_by_its_own_answers(config):
    fill, choose = build(config(NO_CLIENTS + GROUPS)).groups
    assert (fill.server.answering.kind, fill.server.answering.new_tokens) == ("number", 4)
    assert (choose.server.answering.kind, choose.server.answering.new_tokens) == ("letter", 2)
    assert len(fill.server.splits["test"]["labels"]) == 6
    assert len(choose.server.splits["test"]["labels"]) == 5
    experiment = build(config(NO_CLIENTS + GROUPS))
    kinds = [experiment.clients[id].answering.kind for id in range(4)]
    assert kinds == ["number", "number", "letter", "letter"]
    assert build(config(HEAD, "data.answers=exact")).only.server.answering.kind == "exact"
    by_tokens = HEAD.replace('answers = "number"', "").replace("new_tokens = 4", "")
    assert build(config(by_tokens)).only.server.answering is None


def test_a_run_of_two_formats_scores_answers_and_is_the_same_again(config, tmp_path):
    folders = [run(config(NO_CLIENTS + GROUPS), tmp_path / name) for name in ("one", "two")]
    first, second = ([line["evaluation"] for line in read_rounds(folder)] for folder in folders)
    assert first == second
    assert len(first) == 2
    for scores in first:
        assert scores["groups"].keys() == {"fill", "choose"}
        for label, num in (("fill", 6), ("choose", 5)):
            assert scores["groups"][label]["examples"] == num
            assert (scores["groups"][label]["accuracy"] * num) % 1 == pytest.approx(0)
        assert scores["clients"].keys() == {"0", "1", "2", "3"}
        assert all(0 <= one["accuracy"] <= 1 < one["loss"] for one in scores["clients"].values())


def test_a_model_that_learned_the_answers_by_heart_answers_right(config, tmp_path):
    rows = [{"text": f"{word}:", "label": word} for word in ("cat", "dog")] * 8
    (tmp_path / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = HEAD.replace("arithmetic:blank?train=24&test=6", "./pets.jsonl").replace('"number"', '"label"')
    learned = {"rounds": 2, "training.steps": 80, "training.learning_rate": 0.01, "adapter.rank": 16}
    changes = [f"{key}={value}" for key, value in learned.items()]
    prompt = ['data.prompt="{text} "', 'data.words={cat = "meow", dog = "bark"}', "data.new_tokens=6"]
    targets = 'adapter.targets=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]'
    wanted = config(
        text,
        *changes,
        *prompt,
        targets,
        "partition.num_clients=2",
        "model.max_length=16",
        "model.name=tiny:llama?layers=2&width=32",
    )
    assert build(wanted).only.server.answering.classes == ("meow", "bark")
    last = read_rounds(run(wanted, tmp_path / "run"))[-1]["evaluation"]
    assert last["global"]["accuracy"] == 1.0


PROBLEMS = [
    (
        ("model.task=sequence-classification", "model.name=tiny:bert?layers=2&width=16", "data.source=./two.jsonl"),
        [r"data\.answers = 'number': is for language models, and model\.task = 'sequence-.*' is not one; leave"],
    ),
    (
        ("data.source=./two.jsonl",),
        [r"data\.answers = 'number': the rows of data\.source = '.*two\.jsonl' have no completions; name "],
    ),
    (
        ("data.source=./two.jsonl", "data.target=label"),
        [r"data\.source = '.*two\.jsonl': 1 row .*\n  no number in its completion \('none'\): 1 row: .*, line 2$"],
    ),
    (
        ("data.source=./two.jsonl", "data.target=label", "data.answers=letter"),
        [r"2 rows cannot be used.*\n  no letter from A to E in its completion \('5'\): 2 rows: .*, lines 1 and 2$"],
    ),
    (
        ("data.source=./two.jsonl", "data.target=label", "data.answers=program"),
        [r"two\.jsonl, line 1 is a program without a value \(leaves nothing in `answer` and prints nothing\), and so"],
    ),
    (
        ("data.test=./empty.jsonl",),
        [r"data\.test = '.*empty\.jsonl': 1 row .*\n  an empty prompt.*, line 1$"],
    ),
    (("data.answers=numbers",), [r"data\.answers = 'numbers': not one of the choices"]),
    (("data.new_tokens=0",), [r"data\.new_tokens = 0: "]),
    (("data.source=arithmetic:blanks",), [r"there is no format 'blanks' \(did you mean 'blank'\?\)"]),
]


@pytest.mark.parametrize(("changes", "messages"), PROBLEMS)
def test_what_does_not_fit_is_told_before_a_model_is_loaded(config, tmp_path, changes, messages):
    rows = [{"text": "two", "label": "5"}, {"text": "four", "label": "none"}]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "empty.jsonl").write_text(json.dumps({"instruction": "", "output": "1", "text": " "}))
    more = ("data.target=output",) if "data.test=./empty.jsonl" in changes else ()
    try:
        problems = check(config(HEAD, *changes, *more))
    except ConfigError as error:
        problems = list(error.problems)
    for message in messages:
        assert any(re.search(message, problem) for problem in problems), problems


def test_between_sites_every_client_is_judged_on_rows_of_its_own(config, tmp_path):
    for client in range(2):
        rows = [{"instruction": f"{n} + {client}?", "output": f"It is {n + client}"} for n in range(8)]
        (tmp_path / f"site-{client}.json").write_text(json.dumps(rows))
    changes = ["data.source=./site-{client}.json", "partition.num_clients=2", "partition.scheme=sites"]
    whole, one, server = (build(config(HEAD, *changes), here) for here in (None, (1,), ()))
    assert whole.clients.keys() == {0, 1}
    assert one.clients.keys() == {1}
    for experiment in (whole, one, server):
        assert experiment.only.server.answering.kind == "number"
    assert one.clients[1].answering.kind == "number"
    assert one.clients[1].splits["test"]["labels"].equal(whole.clients[1].splits["test"]["labels"])
    label = build(config(HEAD, *changes, "data.answers=label"))
    assert label.only.server.answering.classes == ()  # no place sees all of them


def test_rows_of_a_training_source_without_rows_are_refused(config):
    with pytest.raises((ConfigError, DataError)):
        build(config(HEAD, "data.source=arithmetic:blank?train=0&test=5"))
