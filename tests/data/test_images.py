from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fedquilt.core.errors import DataError
from fedquilt.data.images import stacked


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def test_uint8_stays_as_it_is() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert np.array_equal(stacked(images, "x").numpy(), images)
    assert stacked(images[..., None], "x").shape == (2, 4, 4)
    assert stacked(np.zeros((2, 4, 4, 3), np.uint8), "x").shape == (2, 4, 4, 3)


def test_fractions_are_scaled_and_whole_numbers_are_not() -> None:
    assert stacked(np.array([[[0.0, 0.5, 1.0]]]), "x").tolist() == [[[0, 128, 255]]]
    assert stacked(np.array([[[0, 1, 255]]]), "x").tolist() == [[[0, 1, 255]]]
    assert stacked(np.array([[[0.0, 200.4]]]), "x").tolist() == [[[0, 200]]]
    assert stacked(np.array([[[True, False]]]), "x").tolist() == [[[255, 0]]]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\) is not a stack of images"),
        (np.zeros((2, 3, 8, 8)), "channels last"),
        (np.full((1, 2, 2), -1.0), "pixels run from -1 to 0"),
        (np.full((1, 2, 2), np.nan), "pixels run from nan"),
        (np.full((1, 2, 2), 256), "pixels run from 0 to 256"),
        (np.full((1, 2, 2), "a"), "values are not pixels"),
    ],
)
def test_what_is_no_image_is_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        stacked(array, "x")


def test_unequal_images_take_the_size_of_the_first() -> None:
    first, second = Image.new("L", (6, 4), 10), Image.new("L", (3, 8), 200)
    images = stacked([first, encoded(second)], "x")
    assert images.shape == (2, 4, 6)
    assert images[0].unique().tolist() == [10]
    assert images[1].unique().tolist() == [200]


def test_one_coloured_image_makes_all_of_them_coloured() -> None:
    images = stacked([Image.new("L", (2, 2), 7), {"bytes": encoded(Image.new("RGB", (2, 2), (1, 2, 3)))}], "x")
    assert images.shape == (2, 2, 2, 3)
    assert images[0, 0, 0].tolist() == [7, 7, 7]
    assert images[1, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [b"no picture", {"bytes": b"", "path": None}, "missing.png", None])
def test_a_row_that_is_no_image_is_named(value: object) -> None:
    with pytest.raises(DataError, match="x, row 1: "):
        stacked([Image.new("L", (2, 2)), value], "x")
