from types import SimpleNamespace

import pytest
import torch

from fedquilt.core.errors import DataError
from fedquilt.data.table import Table
from fedquilt.models.image import Pixels, encode_images, image_preparer, pixels_of


def table(images, labels=True):
    return Table("image", images, torch.arange(len(images)) if labels else None, ("a", "b"))


def test_images_wait_as_bytes_with_their_channels_last():
    grey = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    columns = encode_images(table(grey))
    assert columns["pixel_values"].shape == (3, 8, 8, 1)
    assert columns["pixel_values"].dtype == torch.uint8
    assert columns["labels"].tolist() == [0, 1, 2]
    assert encode_images(table(grey.unsqueeze(-1).expand(-1, -1, -1, 3)))["pixel_values"].shape == (3, 8, 8, 3)


def test_normalisation_is_the_formula():
    x = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    prepare = image_preparer(Pixels((8, 8), 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    (name, got), *rest = prepare({"pixel_values": x, "labels": torch.zeros(2)}).items()
    expected = (x.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    assert name == "pixel_values"
    assert rest == []
    torch.testing.assert_close(got, expected)


def test_resizing_keeps_a_flat_image_flat_and_averages_when_it_shrinks():
    flat = torch.full((1, 8, 8, 1), 51, dtype=torch.uint8)
    prepare = image_preparer(Pixels((28, 28), 1, mean=(0.0,), std=(1.0,)))
    torch.testing.assert_close(prepare({"pixel_values": flat})["pixel_values"], torch.full((1, 1, 28, 28), 0.2))
    checks = (torch.arange(56).view(-1, 1) + torch.arange(56)) % 2 * 255
    small = image_preparer(Pixels((7, 7), 1, mean=(0.0,), std=(1.0,)))(
        {"pixel_values": checks.byte().view(1, 56, 56, 1)}
    )
    assert float((small["pixel_values"] - 0.5).abs().max()) < 0.02  # without antialiasing it would be black or white


def test_channels_are_repeated_averaged_and_alpha_is_dropped():
    plain = Pixels(None, 3, mean=(0.0,), std=(1.0,), scale=1.0)
    grey = torch.randint(0, 256, (1, 4, 4, 1), dtype=torch.uint8)
    colour = torch.randint(0, 256, (1, 4, 4, 4), dtype=torch.uint8)
    repeated = image_preparer(plain)({"pixel_values": grey})["pixel_values"]
    assert torch.equal(repeated, grey.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float())
    assert torch.equal(
        image_preparer(plain)({"pixel_values": colour})["pixel_values"][0, 2], colour[0, :, :, 2].float()
    )
    single = image_preparer(Pixels(None, 1, mean=(0.0,), std=(1.0,), scale=1.0))({"pixel_values": colour})
    torch.testing.assert_close(single["pixel_values"][0, 0], colour[0, :, :, :3].float().mean(-1))


def test_what_the_model_wants_is_read_from_config_and_preprocessor():
    config = SimpleNamespace(image_size=28, num_channels=1)
    told = {"image_mean": [0.1, 0.3, 0.5], "image_std": [0.2], "rescale_factor": 0.01}
    assert pixels_of(config, told) == Pixels((28, 28), 1, [0.1, 0.3, 0.5], [0.2], 0.01)
    assert pixels_of(config, {}) == Pixels((28, 28), 1, (0.5,), (0.5,), 1 / 255)
    assert pixels_of(SimpleNamespace(vision_config=config), {}).size == (28, 28)
    assert pixels_of(SimpleNamespace(), {"size": {"height": 4, "width": 6}}).size == (4, 6)
    bare = pixels_of(SimpleNamespace(), {"size": {"shortest_edge": 5}, "do_normalize": False, "do_rescale": False})
    assert bare == Pixels((5, 5), 3, (0.0,), (1.0,), 1.0)
    pixels = image_preparer(pixels_of(config, told))({"pixel_values": torch.zeros(1, 28, 28, 1, dtype=torch.uint8)})
    torch.testing.assert_close(pixels["pixel_values"], torch.full((1, 1, 28, 28), -1.5))  # mean over channels 0.3


def test_rows_that_are_no_labelled_images_are_told():
    with pytest.raises(DataError, match=r"takes images, but the data holds text; set model.task and data.source"):
        encode_images(Table("text", ["a"], torch.zeros(1), ("a",)))
    with pytest.raises(
        DataError, match=r"has no labels, and a classifier needs them; name their column in data\.label"
    ):
        encode_images(table(torch.zeros(1, 8, 8, dtype=torch.uint8), labels=False))
    with pytest.raises(DataError, match=r"images are torch\.float32 \(1, 8, 8\); they must be uint8"):
        encode_images(table(torch.zeros(1, 8, 8)))
