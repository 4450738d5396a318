"""A base that is a classifier already: its classes and the data's are joined by name, or the run does not begin."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.rng import Rng
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.flower_site import cards
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source
from fedquilt.record import read_environment

TEXT, IMAGE = "sequence-classification", "image-classification"
NAMES = ["cow", "bee", "ant"]
TINY = {TEXT: "tiny:bert", IMAGE: "tiny:vit?image=8&patch=4"}


def base(folder, names, task=TEXT, bare=False):
    """A folder with a classifier of these classes, in this order; ``bare``: without its head."""
    model = load_model(TINY[task], task, num_classes=len(names), rng=Rng(0)).model
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    (getattr(model, model.base_model_prefix) if bare else model).save_pretrained(folder)
    if task == TEXT:
        read_tokenizer(Source("tiny", values={}), config_from({"model_type": "bert"}), {}).save_pretrained(folder)
    return folder


def rows(path, labels):
    lines = [{"text": f"row {number} of some", "label": label} for number, label in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def wanted(model, data, task=TEXT, **changes):
    keys = {
        "rounds": 1,
        "threads": 1,
        "device": "cpu",
        "model": {"name": str(model), "task": task, "max_length": 16},
        "data": {"source": str(data)},
        "partition": {"num_clients": 2},
        "clients": {"shares": "1", "budgets": [2]},
        "adapter": {"rank": 2},
        "training": {"steps": 1, "batch_size": 8, "learning_rate": 0.01},
        "method": {"name": "fedit"},
    }
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        (keys.setdefault(section, {}) if inner else keys)[inner or section] = value
    return parse(keys)


def outputs(experiment):
    """The labels that the model learns, by row of the data."""
    found = {}
    for id, client in experiment.clients.items():
        split = experiment.partition["clients"][id]
        found |= dict(zip(split["train"], client.train["labels"].tolist(), strict=True))
        found |= dict(zip(split["test"], client.splits["test"]["labels"].tolist(), strict=True))
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize(
    ("own", "labels", "expected"),
    [
        (NAMES, ["ant", "bee", "cow"], [2, 1, 0]),
        (["Cow ", "BEE", "ant"], ["ant", "bee", "cow"], [2, 1, 0]),
        (["2", "0", "1"], [0, 1, 2], [1, 2, 0]),
        (["2", "0", "1"], ["0", "1", "2"], [1, 2, 0]),
        (["2", "0", "1"], [0.0, 1.0, 2.0], [1, 2, 0]),
        (["True", "False"], [True, False], [0, 1]),
        (["true", "false"], ["True", "False"], [0, 1]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [2, 0, 1], [2, 0, 1]),
        (["10", "9"], [9, 10], [1, 0]),
    ],
)
@pytest.mark.parametrize("policy", ["frozen", "aggregate"])
def test_labels_number_the_bases_outputs(tmp_path, own, labels, expected, policy):
    data = rows(tmp_path / "rows.jsonl", labels * 8)
    config = wanted(base(tmp_path / "base", own), data, head__policy=policy)
    assert check(config) == []
    experiment = build(config)
    assert outputs(experiment) == expected * 8
    assert not experiment.loaded.fresh_head


def test_names_of_a_saved_dataset_are_joined_too(tmp_path):
    names = datasets.ClassLabel(names=["bee", "cow", "ant"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    table = {"text": [f"row {row}" for row in range(24)], "label": [row % 3 for row in range(24)]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "saved")
    experiment = build(wanted(base(tmp_path / "base", NAMES), tmp_path / "saved", head__policy="frozen"))
    assert outputs(experiment) == [1, 0, 2] * 8


@pytest.mark.parametrize("labels", [["ant", "bee", "cow"], [0, 1, 2]])
def test_images_are_joined_as_text_is(tmp_path, labels):
    own = NAMES if isinstance(labels[0], str) else ["2", "1", "0"]
    images = np.random.default_rng(0).integers(0, 255, (24, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", image=images, label=np.array(labels * 8))
    config = wanted(base(tmp_path / "base", own, IMAGE), tmp_path / "data.npz", IMAGE, head__policy="frozen")
    assert outputs(build(config)) == [2, 1, 0] * 8


def test_clients_that_lack_a_class_number_the_rest_as_all_do(tmp_path):
    data = rows(tmp_path / "rows.jsonl", ["ant", "bee", "cow"] * 12)
    partition = {"scheme": "pathological", "num_clients": 3, "classes_per_client": 1}
    experiment = build(wanted(base(tmp_path / "base", NAMES), data, partition=partition, head__policy="frozen"))
    assert outputs(experiment) == [2, 1, 0] * 12
    assert all(len(set(client.train["labels"].tolist())) == 1 for client in experiment.clients.values())


def test_data_classes_name_what_no_row_has(tmp_path):
    data = rows(tmp_path / "rows.jsonl", ["ant", "cow"] * 12)
    model = base(tmp_path / "base", NAMES)
    config = wanted(model, data, head__policy="frozen", data__classes=["ant", "bee", "cow"])
    assert outputs(build(config)) == [2, 0] * 12
    (problem,) = check(wanted(model, data, head__policy="frozen"))
    assert "its outputs are 'cow', 'bee', 'ant', and the data's classes are 'ant', 'cow'" in problem


def test_each_site_maps_its_own_labels(tmp_path):
    for site, labels in enumerate((["ant", "cow"], ["Bee", "COW "])):
        rows(tmp_path / f"{site}.jsonl", labels * 10)
    config = wanted(
        base(tmp_path / "base", NAMES),
        tmp_path / "{client}.jsonl",
        partition={"scheme": "sites", "num_clients": 2},
        data__classes=["ant", "bee", "cow"],
        head__policy="frozen",
    )
    found = build(config).clients
    assert set(found[0].train["labels"].tolist()) == {2, 0}
    assert set(found[1].train["labels"].tolist()) == {1, 0}
    alone = build(config, (1,))
    assert set(alone.clients[1].train["labels"].tolist()) == {1, 0}
    base(tmp_path / "other", ["bee", "cow", "ant"])
    other = build(config.model_copy(update={"model": replace(config.model, name=str(tmp_path / "other"))}), (1,))
    assert cards(alone)[1]["sections"] != cards(other)[1]["sections"], "a node whose base names its outputs otherwise"


def test_groups_of_other_bases_have_each_their_own_order(tmp_path):
    data = rows(tmp_path / "rows.jsonl", ["ant", "bee", "cow"] * 12)
    groups = [
        {"label": label, "share": 1, "budget": 1, "model": {"name": str(base(tmp_path / label, names)), "task": TEXT}}
        for label, names in (("first", NAMES), ("second", ["bee", "ant", "cow"]))
    ]
    config = wanted(tmp_path / "first", data, groups=groups, clients={}, head__policy="frozen")
    experiment = build(config)
    for group, order in zip(experiment.groups, (NAMES, ["bee", "ant", "cow"]), strict=True):
        client = experiment.clients[group.ids[0]]
        numbers = client.train["labels"].tolist()
        names = [["ant", "bee", "cow"][row % 3] for row in experiment.partition["clients"][group.ids[0]]["train"]]
        assert [order[number] for number in numbers] == names


@pytest.mark.parametrize(
    "own", [["x", "y", "z"], ["ant", "bee", "cow", "dog"], ["ant", "bee"], ["LABEL_0", "LABEL_1", "LABEL_2"]]
)
def test_a_frozen_head_of_other_classes_is_refused_before_training(tmp_path, own):
    data = rows(tmp_path / "rows.jsonl", ["ant", "bee", "cow"] * 8)
    model = base(tmp_path / "base", own)
    config = wanted(model, data, head__policy="frozen")
    assert any("head.policy = 'frozen': the head of model" in problem for problem in check(config))
    with pytest.raises(ConfigError, match=r"head\.policy = 'frozen': the head of model"):
        build(config)
    bare = wanted(base(tmp_path / "bare", own, bare=True), data, head__policy="frozen")
    assert check(bare) == []
    assert build(bare).loaded.fresh_head
    trained = build(wanted(model, data))
    assert trained.loaded.outputs.names == ("ant", "bee", "cow")
    assert trained.loaded.fresh_head == (own[0] != "LABEL_0")


def test_a_head_of_other_classes_is_drawn_anew_and_nothing_else(tmp_path):
    model = base(tmp_path / "base", ["x", "y", "z"])
    found = load_model(str(model), TEXT, num_classes=3, rng=Rng(1), classes=("ant", "bee", "cow")).model.state_dict()
    own = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    drawn = {name for name, value in own.items() if not torch.equal(value, found[name])}
    assert drawn == {"classifier.weight", "classifier.bias"}


def test_the_run_file_can_say_what_the_bases_outputs_are(tmp_path):
    data = rows(tmp_path / "rows.jsonl", [0, 1] * 10)
    model = base(tmp_path / "base", ["POSITIVE", "NEGATIVE"])
    assert check(wanted(model, data, head__policy="frozen"))
    experiment = build(wanted(model, data, head__policy="frozen", model__labels=["1", "0"]))
    assert outputs(experiment) == [1, 0] * 10
    assert experiment.loaded.outputs.names == ("POSITIVE", "NEGATIVE")


@pytest.mark.parametrize(("own", "said"), [(NAMES, NAMES), (["x", "y", "z"], ["ant", "bee", "cow"])])
def test_what_is_exported_names_the_classes(tmp_path, own, said):
    data = rows(tmp_path / "rows.jsonl", ["ant", "bee", "cow"] * 8)
    model = base(tmp_path / "base", own)
    made = run(wanted(model, data), tmp_path / "lora") / "adapters" / "global"
    labels = json.loads((made / "labels.json").read_text("utf-8"))
    assert list(labels["id2label"].values()) == said
    assert labels["label2id"] == {name: place for place, name in enumerate(said)}
    assert f"| 0 | {said[0]} |" in (made / "README.md").read_text("utf-8")
    PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(model), made)
    assert export(tmp_path / "lora", tmp_path / "out").joinpath("labels.json").is_file()
    told = read_environment(tmp_path / "lora")["outputs"][""]
    assert (sorted(told["classes"]), told["names"]) == (["ant", "bee", "cow"], said)
    whole = run(wanted(model, data, adapter={"kind": "full"}), tmp_path / "full") / "adapters" / "global"
    assert [*AutoModelForSequenceClassification.from_pretrained(whole).config.id2label.values()] == said


def test_a_run_does_not_go_on_with_a_base_that_names_its_outputs_otherwise(tmp_path):
    class Stop(Silent):
        def round(self, line):
            raise KeyboardInterrupt

    data = rows(tmp_path / "rows.jsonl", ["ant", "bee", "cow"] * 8)
    config = wanted(base(tmp_path / "base", NAMES), data, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop())
    base(tmp_path / "base", ["ant", "bee", "cow"])
    with pytest.raises(RunError, match="the base's id2label or the data's class names have changed"):
        resume(tmp_path / "run")
