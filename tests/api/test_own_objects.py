"""Models, tokenizers and rows that the calling program holds, in place of names and paths."""

import copy

import datasets
import numpy as np
import pandas
import pytest
import torch
import transformers
from own_objects import Pictures, Words, digits, sentences
from test_api_run import TINY
from torch import nn

import fedquilt
from fedquilt.core.errors import ConfigError, DataError, ModelError, RunError
from fedquilt.data.readers.in_memory import digest, splits_in_memory
from fedquilt.models.text import SPECIAL, byte_tokenizer
from fedquilt.models.weights_digest import digest as weights_of

PLAIN = {key: value for key, value in TINY.items() if key not in ("model", "data")}
PLAIN |= {"task": "image-classification", "clients": {"budgets": (1, 1, 2), "cohort": 4}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokenizer():
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(start_and_end=True), model_input_names=inputs, **special
    )


def test_rows_in_memory_deal_and_train_as_rows_of_a_file(fingerprint):
    rows = digits()
    np.savez("rows.npz", **rows)
    frame = pandas.DataFrame({"image": list(rows["image"]), "label": rows["label"]})
    wanted = {**TINY, "data": {"proxy": 20}}
    runs = [
        fedquilt.run(wanted, folder="file", data="rows.npz"),
        fedquilt.run(wanted, folder="arrays", data=rows),
        fedquilt.run({**TINY, "data": {"source": rows, "proxy": 20}}, folder="section"),
        fedquilt.run(wanted, folder="frame", data=frame),
    ]
    assert len({str(fingerprint(run.folder)) for run in runs}) == 1
    assert runs[1].config.data.source.startswith("in-memory:rows-")
    assert runs[1].config.data.source == runs[2].config.data.source


def test_a_pair_is_train_and_test_and_a_dataset_is_read_with_its_classes():
    rows = digits(200)
    half = {key: value[:50] for key, value in rows.items()}
    (train,), (test,) = ([name for name in splits_in_memory((rows, half)) if name == one] for one in ("train", "test"))
    assert (train, test) == ("train", "test")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
    own = datasets.Dataset.from_dict(sentences(20), features=features)
    assert splits_in_memory(own)[""].class_names == {"label": ("yes", "no")}
    both = datasets.DatasetDict({"train": own, "test": own})
    assert [*splits_in_memory(both)] == ["train", "test"]
    run = fedquilt.run(TINY, rounds=1, data=(rows, half))
    assert run.rounds[0]["evaluation"]["global"]["examples"] == 50


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (3, "rows cannot be read from int"),
        ({"text": ["a"], "label": [1, 2]}, "different lengths .'text' 1, 'label' 2"),
        ({"text": ["a"], "label": [object()]}, "column 'label' holds a object"),
    ],
)
def test_what_is_no_rows_is_refused(rows, words):
    with pytest.raises(DataError, match=words):
        fedquilt.run(TINY, data={"source": rows})


def test_a_digest_tells_every_value_and_name():
    rows = sentences(6)
    others = [{**rows, "label": [1, *rows["label"][1:]]}, {"txt": rows["text"], "label": rows["label"]}]
    others += [{**rows, "label": [str(one) for one in rows["label"]]}, {**rows, "text": [*rows["text"][:5], "x"]}]
    made = [digest(splits_in_memory(one)) for one in (rows, *others)]
    assert len(set(made)) == 5
    assert digest(splits_in_memory(pandas.DataFrame(rows))) == made[0]


def test_a_module_of_your_own_is_fine_tuned_and_stays_as_it_was():
    module = Pictures()
    before = copy.deepcopy(module.state_dict())
    run = fedquilt.run(PLAIN, model=module, data=digits())
    assert run.config.model.name.startswith("in-memory:Pictures-")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    environment = run.files.environment
    assert environment["model"] == weights_of(module)
    assert environment["architecture"] == "pictures-2"
    trained = run.model()
    assert isinstance(trained, Pictures)
    x = torch.rand(3, 1, 8, 8)
    assert trained(x).shape == (3, 10)
    assert not torch.equal(trained(x), module(x))
    assert "load_adapter(base" in (run.adapter() / "README.md").read_text()
    again = fedquilt.load_adapter(copy.deepcopy(module), run.adapter())
    assert torch.equal(again(x), trained(x))


def test_everything_that_a_model_by_name_does_a_module_does():
    one = {"model": Pictures(), "data": digits()}
    assert fedquilt.check(PLAIN, **one) == []
    assert [row["num_classes"] for row in fedquilt.plan(PLAIN, **one)] == [10] * 6
    whole = fedquilt.run(PLAIN, rounds=1, adapter={"kind": "full"}, method="fedit", **one)
    assert whole.model()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    both = fedquilt.compare(PLAIN, methods=["fedit", "straggler"], rounds=1, **one)
    assert len(both.table()) == 2
    with pytest.raises(ConfigError, match="workers = 2: 'in-memory:"):
        fedquilt.compare(PLAIN, methods=["fedra"], rounds=1, workers=2, **one)


def test_text_is_read_by_a_tokenizer_beside_the_module():
    config = PLAIN | {"task": "sequence-classification", "partition": {"num_clients": 3}}
    config |= {"clients": {"budgets": (1, 1, 2)}, "adapter": {"rank": 2, "targets": ["q"]}}
    run = fedquilt.run(config, rounds=1, model=Words(), tokenizer=tokenizer(), data=sentences(), method="fedit")
    assert run.table()[0]["final"] is not None
    with pytest.raises(ModelError, match="has no tokenizer; give one: tokenizer="):
        fedquilt.run(config, model=Words(), data=sentences(), method="fedit")


def test_a_model_of_transformers_in_memory_is_what_it_is_in_a_folder(fingerprint):
    settings = transformers.LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(3)
    model, words = transformers.LlamaForCausalLM(settings), tokenizer()
    model.save_pretrained("saved")
    words.save_pretrained("saved")
    config = PLAIN | {"task": "causal-lm", "partition": {"num_clients": 3}, "clients": {"budgets": (1, 1, 2)}}
    config |= {"method": "fedit", "rounds": 1, "data": {"text": sentences()["text"]}}
    own = fedquilt.run(config, model=model, tokenizer=words, folder="own")
    named = fedquilt.run(config, model="./saved", folder="named")
    assert fingerprint(own.folder) == fingerprint(named.folder)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Pictures(classes=4), "head 'out' has 4 outputs, but the data has 10 classes"),
        (fedquilt.OwnModel(Pictures(), blocks="layer"), "blocks = 'layer': names no nn.ModuleList.*'layers'"),
        (fedquilt.OwnModel(Pictures(), head="heads"), "has no parameters below 'heads'"),
        (nn.Sequential(nn.Linear(3, 3)), "has no list of equal blocks"),
    ],
)
def test_what_cannot_be_found_is_said(model, words):
    with pytest.raises(ModelError, match=words):
        fedquilt.run(PLAIN, model=model, data=digits())


def test_a_model_that_is_none_and_a_tokenizer_alone_are_refused():
    with pytest.raises(ConfigError, match="model = 3: must be a name"):
        fedquilt.run(PLAIN, model=3, data=digits())
    with pytest.raises(ConfigError, match="tokenizer: goes with a model in memory"):
        fedquilt.run(TINY, tokenizer=tokenizer())


def test_a_run_on_objects_goes_on_with_the_same_ones_alone(fingerprint):
    module, rows = Pictures(), digits()

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedquilt.run(PLAIN, model=module, data=rows, folder="stopped", progress=stop)
    with pytest.raises(RunError, match=r"model 'in-memory:Pictures-.*data 'in-memory:rows-.*given here: nothing"):
        fedquilt.open_run("stopped").resume()
    other = Pictures()
    nn.init.zeros_(other.out.bias)
    with pytest.raises(RunError, match="began with objects in memory: model 'in-memory:Pictures-"):
        fedquilt.open_run("stopped", model=other, data=rows).resume()
    run = fedquilt.open_run("stopped", model=module, data=rows).resume()
    whole = fedquilt.run(PLAIN, model=module, data=rows, folder="whole")
    assert fingerprint(run.folder) == fingerprint(whole.folder)


def test_the_command_and_other_engines_refuse_them_clearly(command):
    with pytest.raises(ConfigError, match="engine = 'flower-sim': its clients are other processes, which cannot see"):
        fedquilt.run(PLAIN, model=Pictures(), data=digits(), engine="flower-sim")
    run = fedquilt.run(PLAIN, rounds=1, model=Pictures(), data=digits())
    (run.folder / "result.json").unlink()
    said = command("run", "--resume", run.folder)
    assert said.code == 1
    assert "is an object of the Python program that began the run" in said.err
