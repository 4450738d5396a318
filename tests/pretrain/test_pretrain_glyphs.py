"""Pretraining on glyphs, and the model that ships."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from transformers import ViTForImageClassification

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.glyphs import CLASSES
from fedquilt.models.tiny import new_vit
from fedquilt.pretrain import glyphs
from fedquilt.pretrain.glyphs import DEFAULT_SIZE, pretrain_glyphs, shape_of

ASSETS = Path(str(resources.files("fedquilt"))) / "assets"
ASSET = ASSETS / "glyph-vit"
SMALLER = {"4x32": (4, 32, 60_000), "8x48": (8, 48, 230_000)}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Few drawings to measure on: they take most of a short pretraining's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(glyphs, "_HELD_OUT_ROWS", 64)
        yield


@pytest.fixture(scope="module")
def short(few, tmp_path_factory):
    seen = []
    result = pretrain_glyphs(
        tmp_path_factory.mktemp("short") / "model",
        rng=Rng(1),
        steps=24,
        batch_size=32,
        progress=lambda step, steps, loss: seen.append((step, steps, loss)),
    )
    return result, seen


def test_training_lowers_the_loss(short):
    losses = short[0].losses
    assert len(losses) == 24
    assert sum(losses[-5:]) < sum(losses[:5])


def test_progress_is_told_of_every_step(short):
    result, seen = short
    assert seen == [(step, 24, loss) for step, loss in enumerate(result.losses, start=1)]


def test_the_folder_loads_as_a_hugging_face_model(short):
    result, _ = short
    model = ViTForImageClassification.from_pretrained(result.folder).eval()
    assert model.config.num_hidden_layers == 12
    assert model.config.id2label[0] == CLASSES[0]
    assert model(pixel_values=torch.zeros(2, 1, 28, 28)).logits.shape == (2, len(CLASSES))
    processor = json.loads((result.folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.5]
    assert processor["size"] == {"height": 28, "width": 28}


def test_the_recipe_names_seed_steps_and_result(short):
    result, _ = short
    recipe = tomllib.loads((result.folder / "recipe.toml").read_text())
    assert recipe["command"] == "fedquilt pretrain glyphs --out DIR --steps 24 --seed 1"
    assert recipe["settings"]["batch_size"] == 32
    assert recipe["result"]["accuracy_new_fonts"] == pytest.approx(result.accuracy_new_fonts, abs=1e-4)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    folders = [
        pretrain_glyphs(tmp_path / name, rng=Rng(seed), steps=2, batch_size=8).folder
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    ]
    first, again, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_size_makes_its_own_shape_and_names_itself_in_the_recipe(tmp_path):
    made = pretrain_glyphs(tmp_path / "model", rng=Rng(0), size="4x32", steps=1, batch_size=4)
    model = ViTForImageClassification.from_pretrained(made.folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (4, 32)
    recipe = tomllib.loads((made.folder / "recipe.toml").read_text())
    assert recipe["command"] == "fedquilt pretrain glyphs --out DIR --size 4x32 --steps 1 --seed 0"


def test_a_size_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no size '4x33' \(did you mean '4x32'\?\); allowed: 4x32, 8x48"):
        pretrain_glyphs(tmp_path / "model", rng=Rng(0), size="4x33")
    assert not (tmp_path / "model").exists()


def test_all_bad_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        pretrain_glyphs(tmp_path / "model", rng=Rng(0), steps=0, learning_rate=-1.0)
    assert "steps is 0; allowed: a whole number from 1" in str(caught.value)
    assert "learning_rate is -1.0; allowed: a number above 0" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="is not empty; choose another folder"):
        pretrain_glyphs(tmp_path, rng=Rng(0), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder"):
        pretrain_glyphs(tmp_path / "file" / "model", rng=Rng(0), steps=1)


def test_the_shipped_model_is_small_and_of_the_promised_shape():
    assert 1_000_000 < (ASSET / "model.safetensors").stat().st_size < 3_000_000
    model = ViTForImageClassification.from_pretrained(ASSET)
    assert len(model.vit.layers) == 12
    assert 450_000 < sum(weight.numel() for weight in model.parameters()) < 550_000
    assert tuple(model.config.id2label.values()) == CLASSES
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_shipped_model_has_its_recipe_and_its_readme():
    recipe = tomllib.loads((ASSET / "recipe.toml").read_text())
    assert recipe["result"]["num_classes"] == len(CLASSES)
    assert recipe["result"]["accuracy_new_fonts"] > 0.7
    text = (ASSET / "README.md").read_text()
    assert recipe["command"].replace("DIR", "glyph-vit") in text
    for word in ("no digit", "DejaVu", "STIX", "Computer Modern", "seed"):
        assert word in text


@pytest.mark.parametrize("size", list(SMALLER))
def test_a_smaller_shipped_model_is_of_its_size_and_says_where_it_comes_from(size):
    layers, width, num_weights = SMALLER[size]
    folder = ASSETS / f"glyph-vit-{size}"
    assert (folder / "model.safetensors").stat().st_size < 1_500_000
    model = ViTForImageClassification.from_pretrained(folder)
    assert (len(model.vit.layers), model.config.hidden_size) == (layers, width)
    assert 0.8 * num_weights < sum(weight.numel() for weight in model.parameters()) < 1.2 * num_weights
    assert tuple(model.config.id2label.values()) == CLASSES
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    assert f"--size {size}" in recipe["command"]
    assert recipe["result"]["accuracy_new_fonts"] > 0.4
    text = (folder / "README.md").read_text()
    assert recipe["command"].replace("DIR", f"glyph-vit-{size}") in text
    assert f"{recipe['result']['accuracy_new_fonts']:.3f}" in text


@pytest.mark.parametrize("size", list(SMALLER))
def test_smaller_features_tell_digits_apart_better_than_random_weights(size):
    shipped = _digit_accuracy(ViTForImageClassification.from_pretrained(ASSETS / f"glyph-vit-{size}").eval())
    random = _digit_accuracy(new_vit(shape_of(size), CLASSES, Rng(0)).eval())
    assert shipped > 0.85
    assert shipped > random + 0.05


def test_the_shipped_features_tell_digits_apart_better_than_random_weights():
    shipped = _digit_accuracy(ViTForImageClassification.from_pretrained(ASSET).eval())
    random = _digit_accuracy(new_vit(shape_of(DEFAULT_SIZE), CLASSES, Rng(0)).eval())
    assert shipped > 0.93
    assert shipped > random + 0.15


@torch.no_grad()
def _digit_accuracy(model) -> float:
    """5 nearest neighbours on the frozen class token: 1000 digits to compare with, the others to test."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    pixels = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear", antialias=True) * 2 - 1
    features = torch.cat([model.vit(pixel_values=part).last_hidden_state[:, 0] for part in pixels.split(256)]).numpy()
    nearest = KNeighborsClassifier(5).fit(features[:1000], digits.target[:1000])
    return float(nearest.score(features[1000:], digits.target[1000:]))
