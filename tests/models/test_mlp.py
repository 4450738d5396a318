"""The MLP for tables: its name, its blocks, any number of outputs, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedquilt.core.errors import DataError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.data.cells import Cells
from fedquilt.data.table import Table
from fedquilt.data.tabular import fit
from fedquilt.models.features import saved_features
from fedquilt.models.hf import load_model
from fedquilt.models.loaded import Loaded

CELLS = Cells({"age": np.arange(6.0), "sex": np.array(["f", "m", "f", "f", "m", None], dtype=object)})
FEATURES = fit(CELLS)
TABLE = Table("table", CELLS, torch.tensor([0, 1, 0, 1, 0, 1]), ("ill", "well"))


def load(name: str = "mlp?layers=3&width=16", seed: int = 0, **options: object) -> Loaded:
    asked = {"num_classes": 2, "classes": ("ill", "well"), "features": FEATURES, **options}
    return load_model(name, "tabular-classification", rng=Rng(seed), **asked)  # type: ignore[arg-type]


def test_the_hidden_blocks_are_the_blocks_and_the_head_lies_outside() -> None:
    loaded = load()
    assert (loaded.blocks.path, loaded.blocks.num_layers) == ("mlp.layers", 3)
    assert loaded.head == ("classifier.weight", "classifier.bias")
    assert loaded.targets == ("expand", "contract")
    assert loaded.architecture == "mlp-3x16"
    assert load("mlp").architecture == "mlp-2x64"


@pytest.mark.parametrize("outputs", [2, 7, 128])
def test_rows_of_any_table_give_any_number_of_outputs(outputs: int) -> None:
    loaded = load(num_classes=outputs, classes=())
    columns = loaded.encode(TABLE)
    assert torch.equal(columns["features"], FEATURES(CELLS))
    logits = loaded.model(**loaded.prepare(columns)).logits
    assert logits.shape == (6, outputs)
    assert logits.std() > 0.1  # neither is it all but 0, nor the same for every row


def test_every_block_adds_to_what_it_is_given() -> None:
    loaded = load()
    block = loaded.model.get_submodule("mlp.layers.1")
    x = torch.randn(4, 16, generator=Rng(0).torch())
    inner = torch.nn.functional.gelu(block.expand(torch.nn.functional.layer_norm(x, (16,))))
    torch.testing.assert_close(block(x), x + block.contract(inner))


def test_weights_follow_from_the_seed() -> None:
    assert load().digest == load().digest
    assert load().digest != load(seed=1).digest


def test_a_saved_model_brings_its_preprocessing_along(tmp_path: Path) -> None:
    loaded = load()
    loaded.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json")
    }
    assert saved_features(tmp_path / "saved") == FEATURES
    again = load(str(tmp_path / "saved"), seed=5, features=None)
    assert again.digest == loaded.digest
    assert again.reading.features == FEATURES
    assert not again.fresh_head
    shorter = load(f"{tmp_path / 'saved'}?layers=1", features=None)
    assert shorter.blocks.num_layers == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlp?depth=3", r"mlp\?depth=3: there is no size 'depth' .*; there are: layers, width"),
        ("mlp?layers=0", "layers is '0'; it must be a whole number of at least 1"),
        ("tiny:vit", "a vit model offers no tabular-classification"),
        ("glyph-vit", "a vit model offers no tabular-classification"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(name)


def test_other_tasks_and_missing_columns_are_refused() -> None:
    with pytest.raises(ModelError, match=r"a mlp model offers no image-classification; model\.task can be: tabular-cl"):
        load_model("mlp", "image-classification", num_classes=2, rng=Rng(0))
    with pytest.raises(ModelError, match="as many inputs as the data gives features, and no data is known"):
        load(features=None)
    with pytest.raises(DataError, match="takes columns of numbers and categories, but the data holds images or text"):
        load().encode(Table("text", ["a"], torch.tensor([0]), ("ill", "well")))
    with pytest.raises(DataError, match=r"no labels, .* name their column in data\.label"):
        load(classes=()).encode(Table("table", CELLS, None, ()))


def test_a_saved_model_without_its_preprocessing_is_refused(tmp_path: Path) -> None:
    load().save(tmp_path / "saved")
    (tmp_path / "saved" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json, which says how columns become its inputs"):
        load(str(tmp_path / "saved"))
