"""Hub names and local copies of them."""

import json

import pytest
import torch

import fedquilt
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.locate import MODELS, find_source

NAME = "some-org/tiny-llama"


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with a copy of a small model at ``some-org/tiny-llama``, named in the environment."""
    folder = tmp_path / "models"
    made = load_model("tiny:llama", "causal-lm", num_classes=None, rng=Rng(1), dtype=torch.bfloat16)
    (folder / "some-org").mkdir(parents=True)
    made.save(folder / NAME)
    monkeypatch.setenv(MODELS, str(folder))
    return folder


def test_a_hub_name_is_read_from_its_copy(copies):
    found = find_source(NAME, False, 8)
    assert (found.name, found.location, found.local, found.on_hub) == (NAME, str(copies / NAME), True, True)
    assert find_source("other-org/other", False, 8).location == "other-org/other"
    (copies / "tiny-llama").mkdir()
    assert find_source("third-org/tiny-llama", False, 8).location == str(copies / "tiny-llama")
    assert find_source(NAME, False, 8).location == str(copies / NAME)  # the full name first
    assert find_source(f"{NAME}?layers=1", False, 8).location == str(copies / NAME)


def test_a_copy_takes_the_revision_of_its_name_and_a_plain_folder_none(copies):
    options = {"num_classes": None, "rng": Rng(1), "revision": "abc"}
    assert load_model(NAME, "causal-lm", **options).blocks.num_layers == 2
    with pytest.raises(ConfigError, match=r"model.revision = 'abc': applies only to names on the hub"):
        load_model(str(copies / NAME), "causal-lm", **options)


@pytest.mark.parametrize("name", ["org/..", "org/.hidden", "../models", "org/a/b"])
def test_no_name_leaves_the_folder(copies, name, monkeypatch):
    (copies / "elsewhere").mkdir()
    monkeypatch.chdir(copies / "elsewhere")  # a name is a local folder first
    with pytest.raises(ModelError, match="there is no such folder; a model is a built-in name"):
        find_source(name, False, 8)


def test_a_variable_that_names_no_folder_is_no_reason_to_download(copies, monkeypatch):
    monkeypatch.setenv(MODELS, str(copies / "nowhere"))
    with pytest.raises(ModelError, match=r"the environment variable FEDQUILT_MODELS is '.*nowhere', and there is no"):
        find_source(NAME, False, 8)


def test_a_run_keeps_the_name_and_is_read_where_the_copies_lie_elsewhere(copies, monkeypatch, tmp_path):
    file = {
        "model": {"name": NAME, "task": "causal-lm", "dtype": "bfloat16"},
        "data": {"source": "arithmetic:blank?train=24&test=6"},
        "partition": {"num_clients": 2},
        "clients": {"shares": "1", "budgets": [2]},
        "training": {"steps": 1, "batch_size": 2},
        "method": {"name": "fedit"},
    }
    run = fedquilt.run({**file, "rounds": 1}, folder=tmp_path / "run")
    text = (run.folder / "config.json").read_text()
    assert NAME in text
    assert str(copies) not in text
    adapter = json.loads((run.folder / "adapters/global/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == NAME
    moved = tmp_path / "elsewhere"
    copies.rename(moved)
    monkeypatch.setenv(MODELS, str(moved))
    assert run.model().dtype == torch.bfloat16
