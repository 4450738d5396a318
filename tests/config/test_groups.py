"""[[groups]]: what each group's clients train by, and every mistake by its key."""

import hashlib
import json

import pytest

from fedquilt.config.groups import group_problems, parts
from fedquilt.config.load import digest, examine, load, parse, resolved, variants
from fedquilt.core.errors import ConfigError

GROUPS = """
[model]
name = "glyph-vit"
task = "image-classification"

[data]
source = "sklearn:digits"

[partition]
num_clients = 7

[training]
steps = 5
learning_rate = 0.01

[[groups]]
label = "small"
share = 2
budget = 3

[[groups]]
label = "words"
budget = 2
rank = 4
model = {name = "tiny:bert", task = "sequence-classification"}
data = {source = "./words.tsv"}
partition = {scheme = "dirichlet", alpha = 1.0}
training = {epochs = 2}
adapter = {targets = ["query"]}
head = {policy = "local"}
"""


@pytest.fixture
def file(tmp_path):
    def made(text=GROUPS):
        path = tmp_path / "groups.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return made


def test_each_group_has_the_config_of_a_federation_of_its_own(file, tmp_path):
    config, _ = load(file())
    small, words = parts(config)
    assert (small.label, small.ids, words.label, words.ids) == ("small", range(4), "words", range(4, 7))
    assert small.config.model == config.model
    assert small.config.clients.budgets == (3,)
    assert small.config.clients.ranks is None
    assert small.config.training == config.training
    assert words.config.model.name == "tiny:bert"
    assert words.config.model.max_length == 128
    assert words.config.data.source == str(tmp_path / "words.tsv")
    assert words.config.partition.settings == {"alpha": 1.0}
    assert words.config.partition.num_clients == 3
    assert words.config.clients.ranks == (4,)
    assert (words.config.training.steps, words.config.training.epochs) == (None, 2)
    assert words.config.training.learning_rate == 0.01
    assert (words.config.adapter.targets, words.config.adapter.rank) == (("query",), 16)
    assert words.config.head.policy == "local"


def test_a_config_without_groups_is_one_part_and_keeps_its_digest(file):
    config, _ = load(file(GROUPS.partition("[[groups]]")[0]))
    (part,) = parts(config)
    assert (part.label, part.config) == ("", config)
    keys = resolved(config)
    assert "groups" not in keys
    for name in ("name", "seeds", "device", "output", "compare", "track"):
        del keys[name]
    for name in ("timeout", "wait", "grace", "node_keys"):
        del keys["network"][name]
    del keys["evaluation"]["last"]
    del keys["checkpoints"]["keep"], keys["engine"]["processes"]
    assert digest(config) == hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def test_what_is_resolved_reads_back_and_groups_count_in_the_digest(file):
    config, raw = load(file())
    keys = resolved(config)
    again = parse(json.loads(json.dumps(keys)))
    assert parts(again) == parts(config)
    assert resolved(again) == keys
    assert digest(again) == digest(config)
    other, _ = load(file(GROUPS.replace("share = 2", "share = 3")))
    assert digest(other) != digest(config)
    ((_, variant),) = variants(raw)
    assert parts(parse(variant)) == parts(config)


WRONG = [
    (
        "budget = 3",
        "budgt = 3",
        r"groups\[0\].budgt = 3: unknown key \(did you mean 'budget'\?\); allowed: label, share",
    ),
    ("budget = 3", "budget = 0", r"groups\[0\].budget = 0: must be at least 1"),
    ("budget = 3\n", "", r"groups\[0\].budget: missing"),
    ('name = "tiny:bert"', 'nme = "tiny:bert"', r"groups\[1\].model.name: missing"),
    ("epochs = 2", "epoch = 2", r"groups\[1\].training.epoch = 2: unknown key \(did you mean 'epochs'\?\)"),
    ("epochs = 2", "epochs = 2, steps = 1", r"groups\[1\].training: steps = 1 and epochs = 2 are both set"),
    ("epochs = 2", "proximal = 0.1", r"groups\[1\].training.proximal = 0.1: is one for all groups"),
    ("epochs = 2", 'optimizer = "adam"', r"groups\[1\].training.optimizer = 'adam': .*did you mean 'adamw'"),
    ("rank = 4", "rank = 32", r"groups\[1\].rank = 32: is more than the 16 of the server's adapters"),
    ('label = "words"', 'label = "small"', r"groups\[1\].label = 'small': stands twice"),
    ('label = "words"', 'label = "a/b"', r"groups\[1\].label = 'a/b': names a folder"),
    ("num_clients = 7", "num_clients = 1", r"partition.num_clients = 1: makes groups of 0, 1 clients"),
    (
        "alpha = 1.0",
        "alpha = 1.0, num_clients = 3",
        r"groups\[1\].partition.num_clients = 3: comes of the group's share",
    ),
    ('data = {source = "./words.tsv"}\n', "", r"groups\[1\].partition: the group has no data of its own to deal"),
    ("alpha = 1.0", "test_fraction = 1.5", r"groups\[1\].partition.test_fraction = 1.5: must be below 1"),
    ('policy = "local"', 'policy = "locl"', r"groups\[1\].head.policy = 'locl': .*did you mean 'local'"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_mistake_in_a_group_is_told_by_its_key(file, old, new, message):
    assert old in GROUPS
    with pytest.raises(ConfigError, match=message):
        load(file(GROUPS.replace(old, new)))


def test_the_keys_that_groups_say_themselves_must_be_left_out(file):
    text = GROUPS + '\n[clients]\nshares = "1-1"\nbudgets = [1, 2]\ncohort = 3\n'
    with pytest.raises(ConfigError) as caught:
        load(file(text))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "clients.shares = '1-1'",
        "clients.budgets = [1, 2]",
    ]
    assert load(file(GROUPS + "\n[clients]\ncohort = 3\n"))[0].cohort == 3


def test_all_mistakes_are_told_at_once_and_the_rest_can_still_be_checked(file):
    text = GROUPS.replace("epochs = 2", "epoch = 2").replace("rank = 4", "rank = 99").replace("share = 2", "share = 0")
    problems, made = examine(file(text))
    assert [problem.partition(" ")[0] for problem in problems] == [
        "groups[0].share",
        "groups[1].training.epoch",
        "groups[1].rank",
    ]
    ((_, config),) = made
    assert [group.label for group in config.groups] == ["small", "words"]
    assert len(group_problems(config)) == 1
    with pytest.raises(ConfigError, match="rank = 99"):
        parts(config)
