from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fedquilt.core.errors import DataError
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.readers.images import Pictures, decoded, of_one_size
from fedquilt.data.readers.raw_columns import from_columns


def encoded(picture: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **how)
    return buffer.getvalue()


def stacked(values: Any, where: str) -> torch.Tensor:
    """The pictures, none of which is in trouble, as one stack."""
    troubles = Troubles(from_columns({"image": values}, "f").origin)
    images = decoded(values, where, troubles)
    troubles.refuse("x")
    assert isinstance(images, torch.Tensor)
    return images


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


def test_unequal_images_keep_their_sizes_until_one_is_wanted() -> None:
    sizes = [(3, 8), (6, 4), (6, 4), (9, 2)]
    values = [encoded(Image.new("L", size, 10 * row)) for row, size in enumerate(sizes)]
    pictures = decoded(values, "x", Troubles(from_columns({"image": values}).origin))
    assert isinstance(pictures, Pictures)
    assert pictures.shape == (4, None, None)
    assert [tuple(picture.shape) for picture in pictures] == [(8, 3), (4, 6), (4, 6), (2, 9)]
    wanted = of_one_size(pictures, (5, 7))
    assert wanted.shape == (4, 5, 7)
    assert [picture.unique().tolist() for picture in wanted] == [[0], [10], [20], [30]]
    assert of_one_size(pictures, None).shape == (4, 4, 6)  # most of them have it
    assert torch.equal(of_one_size(pictures, None)[1], pictures[1])


def test_unlike_sizes_with_and_without_colour() -> None:
    values = [encoded(Image.new("L", (2, 2), 7)), encoded(Image.new("RGB", (4, 4), (1, 2, 3)))]
    pictures = decoded(values, "x", Troubles(from_columns({"image": values}).origin))
    assert isinstance(pictures, Pictures)
    assert pictures.shape == (2, None, None, 3)
    assert of_one_size(pictures, (3, 3))[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_one_coloured_image_makes_all_of_them_coloured() -> None:
    images = stacked([Image.new("L", (2, 2), 7), {"bytes": encoded(Image.new("RGB", (2, 2), (1, 2, 3)))}], "x")
    assert images.shape == (2, 2, 2, 3)
    assert images[0, 0, 0].tolist() == [7, 7, 7]
    assert images[1, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [b"no picture", {"bytes": b"", "path": None}, "missing.png", None])
def test_a_row_that_is_no_image_is_named(value: object) -> None:
    with pytest.raises(DataError, match=r"column 'c': is not an image .*: 1 row: f, row 2$"):
        stacked([Image.new("L", (2, 2)), value], "column 'c'")


RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_become_eight(form: str) -> None:
    deep = stacked([encoded(Image.fromarray(RAMP), form, **({"lossless": True} if form == "JPEG2000" else {}))], "x")
    assert np.abs(deep[0].numpy() - RAMP / 257).max() <= 0.5


def test_pictures_of_floats_are_fractions_or_bytes_and_nothing_else() -> None:
    bright, dark = (np.full((2, 2), value, np.float32) for value in (1.0, 0.5))
    assert stacked([encoded(Image.fromarray(array), "TIFF") for array in (bright, dark)], "x")[:, 0, 0].tolist() == [
        255,
        128,
    ]
    # one that holds 200 says that the 1 of the other is no white
    both = [encoded(Image.fromarray(array), "TIFF") for array in (bright, bright * 200)]
    assert stacked(both, "x")[:, 0, 0].tolist() == [1, 200]
    with pytest.raises(DataError, match=r"pixels run from 0 to 65520; allowed are 0\.\.255"):
        stacked([encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF")], "x")


def test_a_picture_stands_as_its_exif_data_says() -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    array[0, 0] = 200
    picture = Image.fromarray(array)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        mine = stacked([encoded(picture, exif=exif.tobytes())], "x")[0].numpy()
        with Image.open(io.BytesIO(encoded(picture, exif=exif.tobytes()))) as opened:
            theirs = np.asarray(ImageOps.exif_transpose(opened))
        assert np.array_equal(mine, theirs)
        assert mine.shape[:2] == ((4, 6) if orientation < 5 else (6, 4))


def test_what_is_transparent_is_laid_on_white() -> None:
    seen = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    seen.putpixel((1, 0), (0, 0, 0, 0))
    assert stacked([encoded(seen)], "x").tolist() == [[[[9, 9, 9], [255, 255, 255]]]]
    grey = Image.new("LA", (1, 1), (100, 0))
    assert stacked([encoded(grey)], "x").tolist() == [[[255]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert stacked([encoded(palette)], "x").tolist() == [[[[255, 0, 0], [0, 0, 255]]]]
    assert stacked([encoded(palette, transparency=1)], "x").tolist() == [[[[255, 0, 0], [255, 255, 255]]]]


def test_other_colours_become_rgb() -> None:
    ink = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert stacked([encoded(ink, "TIFF")], "x").tolist() == [[[[255, 0, 0]]]]
    assert stacked([encoded(Image.new("1", (1, 1), 1))], "x").tolist() == [[[255]]]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_more_than_one_picture_in_a_row_is_refused(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    film = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"more than one picture, as an animation does.*: 1 row: f, row 1$"):
        stacked([film], "x")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), optimize=True)
    assert len(bomb) < 200_000
    with pytest.raises(DataError, match=r"decompression bomb.*: 1 row"):
        stacked([bomb], "x")


def test_a_program_that_draws_is_no_picture() -> None:
    with pytest.raises(DataError, match="is not an image"):
        stacked([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"], "x")


def test_large_pictures_are_kept_at_a_size_that_models_look_at() -> None:
    assert stacked([Image.new("L", (4096, 2048), 5)], "x").shape == (1, 1024, 2048)
