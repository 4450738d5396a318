import pytest

from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.shapes import PUBLISHED, published, tiny

# parameters of the published checkpoints: the causal models whole, the others without a head (BERT with its pooler)
WHOLE = {
    "gpt2": 124_439_808,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "gemma-2-2b": 2_614_341_888,
}
BODY = {"vit-b16": 85_798_656, "vit-l16": 303_301_632, "bert-base": 109_482_240, "minilm-l6": 22_713_216}


def test_every_published_shape_has_a_number_to_hold_it_to():
    assert WHOLE.keys() | BODY.keys() == PUBLISHED.keys()


@pytest.mark.parametrize(("name", "number"), WHOLE.items())
def test_causal_shapes_have_the_published_number_of_parameters(name, number):
    found = load_model(f"shape:{name}", "causal-lm", num_classes=None, rng=Rng(0), meta=True)
    assert sum(parameter.numel() for parameter in found.model.parameters()) == number
    assert all(parameter.is_meta for parameter in found.model.parameters())
    assert found.digest == ""
    assert found.head == ()


@pytest.mark.parametrize(("name", "number"), BODY.items())
def test_encoder_shapes_have_the_published_number_of_parameters(name, number):
    task = "image-classification" if name.startswith("vit") else "sequence-classification"
    found = load_model(f"shape:{name}", task, num_classes=7, rng=Rng(0), meta=True)
    sizes = {key: parameter.numel() for key, parameter in found.model.named_parameters()}
    width = PUBLISHED[name]["hidden_size"]
    assert sum(sizes[key] for key in found.head) == 7 * (width + 1)
    assert sum(sizes.values()) - 7 * (width + 1) == number


def test_published_is_a_copy():
    published("gpt2")["n_layer"] = 1
    assert published("gpt2")["n_layer"] == 12


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vitt", r"no tiny architecture 'vitt' \(did you mean 'vit'\?\); there are: vit, bert, distilbert, llama"),
        ("vit?layer=3", r"tiny:vit\?layer=3: there is no size 'layer' \(did you mean 'layers'\?\); there are: layers"),
        ("vit?layers=0", r"layers is '0'; it must be a whole number of at least 1"),
        ("vit?layers=two", r"layers is 'two'"),
        ("vit?width=30&heads=4", r"width 30 must be a multiple of twice the heads \(4\)"),
        ("vit?image=30", r"image 30 must be a multiple of patch 7"),
    ],
)
def test_a_tiny_name_that_will_not_do_is_told(name, text):
    with pytest.raises(ModelError, match=text):
        tiny(name, 260, 512)


def test_an_unknown_shape_is_told():
    with pytest.raises(ModelError, match=r"no shape 'llama-3-7b' \(did you mean 'llama-3-8b'\?\); there are: vit-b16"):
        published("llama-3-7b")
