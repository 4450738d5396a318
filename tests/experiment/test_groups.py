"""Clients of unlike model, task, data and head in one federation, as a run file asks for them."""

import importlib
import json

import pytest
import torch

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, DataError, ModelError, RunError
from fedquilt.core.types import Profile, Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.memory import afforded
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.methods.registry import ENTRIES, METHODS, Entry
from fedquilt.methods.traits import Traits
from fedquilt.record import Record, read_environment, read_partition, read_rounds

build_module = importlib.import_module("fedquilt.experiment.build")

HEAD = """
seed = 3
rounds = 2
device = "cpu"
threads = 1

[model]
name = "tiny:vit?layers=3&width=16&image=8&patch=4"
task = "image-classification"

[data]
source = "sklearn:digits"
limit = 160

[partition]
scheme = "iid"
num_clients = 6

[adapter]
rank = 2

[training]
steps = 2
batch_size = 8
learning_rate = 0.01

[method]
name = "fedit"
"""
SMALL = """
[[groups]]
label = "small"
budget = 2
"""
WIDE = """
[[groups]]
label = "wide"
budget = 3
training = {learning_rate = 0.02}
adapter = {rank = 3}
model = {name = "tiny:vit?layers=4&width=24&image=8&patch=4", task = "image-classification"}
"""
WORDS = """
[[groups]]
label = "words"
budget = 1
model = {name = "tiny:bert?layers=2&width=16", task = "sequence-classification", max_length = 12}
data = {source = "./words.tsv"}
partition = {test_fraction = 0.25}
"""


@pytest.fixture
def grouped(tmp_path, words):
    """``grouped(text, changes)``: the config of a run file with groups, beside which lie two kinds of words."""

    def made(text=HEAD + SMALL + WIDE + WORDS, *changes):
        (tmp_path / "groups.toml").write_text(text, encoding="utf-8")
        return load(tmp_path / "groups.toml", changes)[0]

    return made


def test_each_group_has_its_model_its_data_and_its_judge(grouped):
    experiment = build(grouped())
    small, wide, words = experiment.groups
    assert [(group.label, list(group.ids)) for group in experiment.groups] == [
        ("small", [0, 1]),
        ("wide", [2, 3]),
        ("words", [4, 5]),
    ]
    assert len({group.architecture for group in experiment.groups}) == 3
    assert experiment.federation.layouts.keys() == {group.architecture for group in experiment.groups}
    for group in experiment.groups:
        for id in group.ids:
            profile = experiment.clients[id].profile
            assert (profile.group, profile.architecture) == (group.label, group.architecture)
            assert experiment.clients[id].bench is group.bench
        own = sum(len(experiment.clients[id].splits["test"]["labels"]) for id in group.ids)
        assert len(group.server.splits["test"]["labels"]) == own
    assert [group.layout.num_layers for group in experiment.groups] == [3, 4, 2]
    assert experiment.clients[2].training.learning_rate == 0.02
    assert wide.layout.shapes != small.layout.shapes
    held = experiment.partition["clients"]
    assert [client["group"] for client in held] == ["small", "small", "wide", "wide", "words", "words"]
    images = [row for client in held[:4] for split in ("train", "test") for row in client[split]]
    assert sorted(images) == list(range(160))
    texts = [row for client in held[4:] for split in ("train", "test") for row in client[split]]
    assert sorted(texts) == list(range(48))
    assert words.config.model.task == experiment.clients[5].profile.task == "sequence-classification"
    scaling = experiment.federation.scalings
    module = next(name for name in small.layout.depth if name.endswith("lora_A")).removesuffix(".lora_A")
    assert scaling[small.architecture](module, 2) == 8.0
    with pytest.raises(ValueError, match="too many values"):
        experiment.federation.scaling(module, 2)
    with pytest.raises(ValueError, match="too many values"):
        experiment.server  # noqa: B018


def test_what_one_groups_data_are_moves_no_other_groups_rows(grouped):
    three, two = build(grouped()), build(grouped(HEAD.replace("= 6", "= 4") + SMALL + WIDE))
    for id in range(4):
        mine, theirs = (one.partition["clients"][id] for one in (three, two))
        assert mine["train"] == theirs["train"]


def test_groups_of_one_model_and_adapter_train_it_together(grouped):
    twin = '\n[[groups]]\nlabel = "twin"\nbudget = 3\ntraining = {steps = 1}\n'
    other = '\n[[groups]]\nlabel = "targets"\nbudget = 3\nadapter = {targets = ["attention.q_proj"]}\n'
    experiment = build(grouped(HEAD + SMALL + twin + other))
    small, twin, other = experiment.groups
    assert small.architecture == twin.architecture != other.architecture
    assert small.bench is twin.bench
    assert other.bench is not small.bench
    assert other.architecture.endswith(":targets")
    assert experiment.clients[2].training.steps == 1
    base = dict(small.loaded.model.named_parameters())
    shared = {p.data_ptr() for p in base.values()} & {p.data_ptr() for p in other.loaded.model.parameters()}
    assert len(shared) > 10  # the frozen weights are held once
    turn = Turn(0, experiment.federation.profiles, experiment.rng.child("round", 0))
    state = experiment.method.init(experiment.rng.child("init"))
    orders = experiment.method.exchanges[0].ask(state, turn)
    assert orders.keys() == set(range(6))
    assert orders[0].params.keys() == orders[2].params.keys() != orders[4].params.keys()
    assert orders[0].settings["layers"] == orders[2].settings["layers"] == [1, 2]  # what the poorest of both affords
    alone = build(grouped(HEAD.replace("= 6", "= 4") + SMALL + '\n[[groups]]\nlabel = "twin"\nbudget = 3\n'))
    assert "apart" not in alone.method.init(alone.rng)


def test_a_run_of_groups_records_scores_and_exports_each_group(grouped, tmp_path):
    folder = run(grouped(), tmp_path / "run")
    for line in read_rounds(folder):
        scores = line["evaluation"]
        assert scores["global"] is None
        assert scores["groups"].keys() == {"small", "wide", "words"}
        assert all(0 <= one["accuracy"] <= 1 for one in scores["groups"].values())
        assert scores["clients"].keys() == {"0", "1", "2", "3", "4", "5"}
        assert line["learning_rates"] == [0.01, 0.02, 0.01]
        assert line["num_layers"] == 4
        sent = line["exchanges"][0]["clients"]
        assert sent["0"]["settings"]["architecture"] != sent["4"]["settings"]["architecture"]
    assert {path.name for path in (folder / "adapters").iterdir()} == {"global-small", "global-wide", "global-words"}
    told = read_partition(folder)["groups"]
    assert [group["label"] for group in told] == ["small", "wide", "words"]
    assert read_environment(folder)["apart"] == [group["architecture"] for group in told]
    export(folder, tmp_path / "out", group="wide")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3
    export(folder, tmp_path / "of-client", client=5)
    told = json.loads((tmp_path / "of-client" / "adapter_config.json").read_text())
    assert "bert" in told["base_model_name_or_path"]
    for words, message in (
        ({}, r"has a global model for each group; give --group, one of small, wide, words"),
        ({"group": "big"}, r"--group big: .* has no such group; it has small, wide, words"),
        ({"group": "wide", "client": 2}, r"a client is in one group"),
    ):
        with pytest.raises(RunError, match=message):
            export(folder, tmp_path / "none", **words)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("method.name=local-only",),
        ("method.name=fed-hello", "method.scores_from=clients", "head.policy=local", "network.dtype=int8"),
        ("aggregation.server_optimizer=adam", "training.proximal=0.1", "defence.max_update_norm=100.0"),
        ("method.name=fedex-lora",),
        ("privacy.mode=local", "privacy.test_key=7", "method.weighting=uniform", "clients.cohort=3"),
    ],
)
def test_a_stopped_run_of_groups_ends_in_the_same_bits(grouped, tmp_path, fingerprint, copying, changes):
    config = grouped(HEAD + SMALL + WIDE + WORDS, *changes)
    whole = run(config, tmp_path / "whole", copying(tmp_path / "whole", tmp_path / "cut"))
    assert len(read_rounds(tmp_path / "cut")) == 1
    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(whole)


def test_a_group_does_as_it_does_alone_whoever_else_is_there(grouped, tmp_path):
    def end(config, folder):
        run(config, folder)
        scores = read_rounds(folder)[-1]["evaluation"]
        return [scores["clients"][id] for id in ("0", "1", "2", "3")]

    two = HEAD.replace("num_clients = 6", "num_clients = 4") + SMALL + WIDE
    assert end(grouped(two), tmp_path / "two") == end(grouped(), tmp_path / "three")


def test_the_proxy_rows_of_each_group_score_its_layers(grouped):
    text = (HEAD + SMALL + WORDS).replace('"./words.tsv"', '"./words.tsv", proxy = 8')
    experiment = build(grouped(text, "method.name=fed-hello", "method.warmup=0", "data.proxy=8"))
    small, words = experiment.groups
    assert len(small.server.train["labels"]) == len(words.server.train["labels"]) == 8
    state = experiment.method.init(experiment.rng.child("init"))
    scores = {name: own["scores"] for name, own in state["apart"].items()}
    assert [len(scores[group.architecture]) for group in experiment.groups] == [3, 2]


def test_a_plan_lists_every_client_with_its_group(grouped):
    config = grouped()
    plans = plan(config)
    assert [one.group for one in plans] == ["small", "small", "wide", "wide", "words", "words"]
    assert [one.num_classes for one in plans] == [10, 10, 10, 10, 2, 2]
    assert plans[0].weight_bytes != plans[2].weight_bytes
    with pytest.raises(ConfigError, match=r"--memory: 1 number \(1\) for the 3 \[\[groups\]\]; give one for each"):
        afforded(config, [1.0])


WRONG = [
    ("budget = 3", "budget = 9", ConfigError, r"groups\[1\].budget is 9; the model has 4 blocks"),
    ("./words.tsv", "./no.tsv", DataError, r"groups\[2\].data.source = '.*no.tsv'"),
    (
        'data = {source = "./words.tsv"}\npartition = {test_fraction = 0.25}\n',
        "",
        ConfigError,
        r"^group 'words': data.source = 'sklearn:digits': holds images, and model.task = 'sequence-cl",
    ),
    ("rank = 3}", "rank = 3}\nrank = 2", ConfigError,
     r"groups\[1\].rank holds 2 and the server's adapters have rank 3.*leave groups\[1\].rank out"),
    ('[method]\nname = "fedit"', '[privacy]\nmode = "central"\n[method]\nname = "fedit"\nweighting = "uniform"',
     ConfigError, r"privacy.mode = 'central': groups of different architectures"),
    ('"sklearn:digits"', '"sklearn:digit"', DataError, r"^data.source = 'sklearn:digit'"),
    ("{rank = 3}", '{targets = ["nope"]}', ModelError, r"groups\[1\].adapter.targets holds 'nope'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "kind", "message"), WRONG)
def test_what_is_wrong_in_a_group_is_told_by_its_key_before_weights_are_loaded(grouped, old, new, kind, message):
    text = HEAD + SMALL + WIDE + WORDS
    assert old in text
    config = grouped(text.replace(old, new))
    with pytest.raises(kind, match=message) as caught:
        build(config)
    assert str(caught.value).splitlines()[0] in "\n".join(check(config))


def test_check_finds_nothing_wrong_where_nothing_is_and_all_mistakes_at_once(grouped):
    assert check(grouped()) == []
    text = (HEAD + SMALL + WIDE + WORDS).replace("budget = 3", "budget = 9").replace("./words.tsv", "./no.tsv")
    problems = "\n".join(check(grouped(text, "method.name=fedt")))
    for word in ("groups[1].budget is 9", "groups[2].data.source", "method.name = 'fedt'"):
        assert word in problems


def test_a_method_that_shares_across_architectures_gets_the_whole_federation(grouped, monkeypatch):
    given = []

    def across(federation):
        given.append(federation)
        return by_architecture(METHODS["fedit"], federation)

    monkeypatch.setitem(ENTRIES, "across", Entry(across, Traits(across=True)))
    experiment = build(grouped(HEAD + SMALL + WIDE + WORDS, "method.name=across"))
    assert {len(federation.layouts) for federation in given} == {3}
    assert isinstance(experiment.federation.profiles[0], Profile)
    assert torch.is_tensor(next(iter(experiment.clients[0].initial.values())))


def grid_of(config, folder):
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    grid = InProcessGrid(client_app(flower_site.joined(config), folder / "sites"), config.partition.num_clients)
    return grid, flower.over(grid, config, name="in-process", poll=0.05)


@pytest.mark.parametrize("changes", [(), ("method.name=fedsa-lora", "network.dtype=int8"), ("method.name=local-only",)])
def test_on_flower_a_federation_of_groups_ends_in_the_same_bits(grouped, tmp_path, changes):
    config, folder = grouped(HEAD + SMALL + WIDE + WORDS, *changes), tmp_path / "flower"
    whole = run(config, tmp_path / "embedded")
    _, connect = grid_of(config, folder)
    run(config, folder, connect=connect)
    ours, theirs = (Record.open(path).load_checkpoint()[1]["apart"] for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    for name, own in theirs.items():
        assert own["params"].keys() == ours[name]["params"].keys()
        assert all(ours[name]["params"][key].equal(tensor) for key, tensor in own["params"].items())
    assert read_partition(folder) == read_partition(whole)
    left, right = read_rounds(folder), read_rounds(whole)
    assert [line["evaluation"]["groups"] for line in left] == [line["evaluation"]["groups"] for line in right]
    assert not any(line["exchanges"][0]["dropped"] for line in left)


def test_what_a_client_announces_is_of_its_own_group(grouped):
    pytest.importorskip("flwr")
    from fedquilt.engine.flower.handshake import mismatches
    from fedquilt.experiment.flower_site import cards

    made = cards(build(grouped()))
    assert [made[id]["group"] for id in range(6)] == ["small", "small", "wide", "wide", "words", "words"]
    assert made[0]["layout"] == made[1]["layout"] != made[2]["layout"]
    assert made[0]["base"] != made[2]["base"]
    assert made[0]["sections"]["training"] != made[2]["sections"]["training"]
    said = mismatches({**made[2], "partition": 0}, made[0])
    assert "its group is 'wide', and this run needs 'small'" in said


def test_sites_of_unlike_groups_read_and_load_only_what_is_theirs(grouped, tmp_path):
    lines = (tmp_path / "words.tsv").read_text().splitlines()
    for site in range(4):
        rows = [lines[0], *lines[1 + 12 * site : 13 + 12 * site]]
        (tmp_path / f"site-{site}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    start, end = HEAD.index("[model]"), HEAD.index("[adapter]")
    sites = (
        '[model]\nname = "tiny:bert?layers=2&width=16"\ntask = "sequence-classification"\n'
        '[data]\nsource = "SOURCE"\nclasses = ["no", "yes"]\n[partition]\nscheme = "sites"\nnum_clients = 4\n'
    )
    big = (
        '\n[[groups]]\nlabel = "big"\nbudget = 2\n'
        'model = {name = "tiny:bert?layers=3&width=8", task = "sequence-classification"}\n'
    )
    text = HEAD[:start] + sites + HEAD[end:] + SMALL.replace("budget = 2", "budget = 1") + big
    whole = run(grouped(text.replace("SOURCE", "./site-{client}.tsv")), tmp_path / "whole")
    apart = grouped(text.replace("SOURCE", "node"))
    grid, connect = grid_of(apart, tmp_path / "apart")
    for context in grid.contexts.values():
        context.node_config["data"] = str(tmp_path / f"site-{context.node_config['partition-id']}.tsv")
    run(apart, tmp_path / "apart", connect=connect)
    ours, theirs = (Record.open(tmp_path / name).load_checkpoint()[1]["apart"] for name in ("apart", "whole"))
    for name, own in theirs.items():
        assert all(ours[name]["params"][key].equal(tensor) for key, tensor in own["params"].items())
    assert [client["group"] for client in read_partition(tmp_path / "apart")["clients"]] == [
        *("small", "small", "big", "big")
    ]
    alone = build(grouped(text.replace("SOURCE", "./site-{client}.tsv")), (3,))
    assert [*alone.clients] == [3]
    assert [next(group.loaded.model.parameters()).is_meta for group in alone.groups] == [True, False]
    assert whole.exists()


def test_a_node_says_where_the_model_of_its_group_lies_and_groups_that_share_it_still_do(grouped, monkeypatch):
    pytest.importorskip("flwr")
    from fedquilt.experiment import flower_site

    model = 'model = {name = "tiny:vit?layers=4&width=24&image=8&patch=4", task = "image-classification"}\n'
    twin = f'\n[[groups]]\nlabel = "twin"\nbudget = 3\nadapter = {{rank = 3}}\n{model}'
    config = grouped(HEAD + SMALL + WIDE + twin)
    made = []

    def noted(key, partition):
        made.append(json.loads(key))
        return build(config)

    monkeypatch.setattr(flower_site, "_built", noted)
    flower_site.joined(config)(2, {"partition-id": 2, "model": "/models/wide", "device": "cpu"})
    flower_site.joined(config)(0, {"partition-id": 0, "model": "/models/small", "data": "/rows"})
    first, second = made
    assert "tiny:vit" in first["model"]["name"]
    assert [group.get("model", {}).get("name") for group in first["groups"]] == [None, "/models/wide", "/models/wide"]
    assert (second["model"]["name"], second["data"]["source"]) == ("/models/small", "/rows")
    assert "tiny:vit" in second["groups"][1]["model"]["name"]
