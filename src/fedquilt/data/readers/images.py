"""Decoding pictures to uint8 pixels, grey or colour."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.limits import MOST_PIXELS, MOST_SIDE, memory_bytes

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
"""The formats that are decoded; none that executes a program to be displayed, as PostScript does."""

_NONE = np.zeros((1, 1), dtype=np.uint8)
_SMALL = 1 << 24  # pixels that are decoded whatever the compression ratio
_TIGHTEST = 500  # most pixels per byte of a file; a photograph has fewer than 100


class Pictures(tuple[Tensor, ...]):
    """Pictures of different sizes, each uint8 (height, width) or (height, width, 3)."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """``(n, None, None)``, or ``(n, None, None, 3)`` if any picture has colour."""
        colour = (3,) if any(picture.dim() == 3 for picture in self) else ()
        return (len(self), None, None, *colour)


def decoded(
    values: Sequence[Any] | np.ndarray, column: str, troubles: Troubles, source: str = "the data"
) -> Tensor | Pictures:
    """The pictures as uint8 ``(n, H, W)``, or ``(n, H, W, 3)`` if any has colour; ``Pictures`` if sizes differ.

    ``values`` is one array, or a list of pillow images, arrays or encoded files. EXIF orientation is applied; 16-bit
    pixels are scaled to 8 bits; transparent pixels are blended with white; palettes, CMYK and other colour modes become
    RGB. Pixels in arrays, and in pictures of 32 bits or of floats, are either fractions in 0..1, which are multiplied
    by 255, or numbers in 0..255. Pictures whose shorter side has more than 1024 pixels are scaled down to 1024.

    Values that are not a usable picture are noted in ``troubles``: damaged files, animations, decompression bombs.
    ``source`` and ``column`` say where the values are from.

    Raises
    ------
    DataError
        if ``values`` is one array that is not a stack of images, or the pictures do not fit in memory.
    """
    if isinstance(values, np.ndarray) and values.dtype != object:
        return torch.from_numpy(_stack(values, f"{source}, {column}"))
    pictures: list[np.ndarray] = []
    num_bytes, most = 0, memory_bytes() // 2
    for row, value in enumerate(values):
        try:
            pictures.append(_kept(_picture(value)))
        except UnidentifiedImageError:
            troubles.add(f"{column}: is not an image of the formats {', '.join(FORMATS)}", row)
            pictures.append(_NONE)
        except Exception as error:  # pillow's plugins raise anything, down to struct.error and SyntaxError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            troubles.add(f"{column}: is not an image that can be used", row, reason, show=True)
            pictures.append(_NONE)
        num_bytes += pictures[-1].nbytes
        if num_bytes > most:
            raise DataError(
                f"{source}, {column}: the first {row + 1} of {len(values)} pictures take {num_bytes >> 30} GiB of "
                "memory; scale them down, or use fewer"
            )
    # decided over all pictures: a dark one alone does not show whether white is 1 or 255
    fractions = all(_may_be_fractions(picture) for picture in pictures if picture.dtype != np.uint8)
    pictures = [_scaled(picture, fractions) for picture in pictures]
    if len({picture.shape[:2] for picture in pictures}) > 1:
        return Pictures(map(torch.from_numpy, pictures))
    colour = any(picture.ndim == 3 for picture in pictures)
    return torch.from_numpy(np.stack([_coloured(picture) if colour else picture for picture in pictures]))


def of_one_size(pictures: Pictures, size: tuple[int, int] | None) -> Tensor:
    """The pictures resized to one ``size`` (height, width): uint8 (n, H, W), or (n, H, W, 3) if any has colour.

    Without ``size``, the most frequent size is used, and of several the largest. Bilinear with antialiasing.
    """
    if size is None:
        counts = Counter((picture.shape[0], picture.shape[1]) for picture in pictures)
        size = max(counts, key=lambda own: (counts[own], own[0] * own[1], own))
    colour = len(pictures.shape) == 4
    made = torch.empty((len(pictures), *size, *((3,) if colour else ())), dtype=torch.uint8)
    for row, picture in enumerate(pictures):
        planes = picture[None] if picture.dim() == 2 else picture.movedim(-1, 0)  # (channels, height, width)
        if planes.shape[1:] != size:
            sized = F.interpolate(planes[None].float(), size=size, mode="bilinear", antialias=True)[0]
            planes = sized.round().clamp(0, 255).to(torch.uint8)
        made[row] = planes.movedim(0, -1).expand(*size, 3) if colour else planes[0]
    return made


def _stack(array: np.ndarray, where: str) -> np.ndarray:
    try:
        numbers = _numbers(array)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if numbers.dtype == np.uint8:
        return np.ascontiguousarray(numbers)
    made = np.empty(numbers.shape, dtype=np.uint8)
    fractions = _may_be_fractions(numbers)
    for row, picture in enumerate(numbers):  # one by one: all as float64 would take eight times the memory
        made[row] = _scaled(picture, fractions)
    return made


def _numbers(array: np.ndarray) -> np.ndarray:
    """A stack of pictures, checked to be scalable to bytes: (n, H, W) or (n, H, W, 3)."""
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3) or 0 in array.shape[1:]:
        raise ValueError(
            f"shape {tuple(array.shape)} is not a stack of images; allowed are (n, height, width) and "
            "(n, height, width, channels) with 1 or 3 channels, channels last"
        )
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"{array.dtype} values are not pixels; allowed are numbers in 0..255 or fractions in 0..1")
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if not (low >= 0 and high <= 255):  # also rejects NaN
        raise ValueError(f"pixels run from {low:g} to {high:g}; allowed are 0..255 or fractions in 0..1")
    return array


def _may_be_fractions(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating)) and float(array.max(initial=0)) <= 1


def _scaled(array: np.ndarray, fractions: bool) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    numbers = array.astype(np.float64)
    return np.round(numbers * 255 if fractions else numbers).astype(np.uint8)


def _picture(value: Any) -> np.ndarray:
    """One picture, (height, width) or (height, width, 3): uint8, or numbers that have yet to be scaled."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str):
        if isinstance(value, str) and not Path(value).is_file():
            raise ValueError("there is no such file")
        size = len(value) if isinstance(value, bytes) else Path(value).stat().st_size
        file = io.BytesIO(value) if isinstance(value, bytes) else value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns about what is rejected or repaired here
            with Image.open(file, formats=FORMATS) as opened:
                _refuse_bomb(opened, size)
                return _pixels(opened)
    if isinstance(value, Image.Image):
        return _pixels(value)
    if value is None:
        raise ValueError("the value is missing")
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(f"{type(value).__name__} holds no pixels")
    first: np.ndarray = _numbers(array[None])[0]
    return first


def _refuse_bomb(picture: Image.Image, num_bytes: int) -> None:
    num_pixels = picture.width * picture.height
    if num_pixels > MOST_PIXELS or (num_pixels > _SMALL and num_pixels > _TIGHTEST * num_bytes):
        raise ValueError(f"{num_bytes:,} bytes unpack to {num_pixels:,} pixels, as a decompression bomb does")


def _pixels(picture: Image.Image) -> np.ndarray:
    # an MPO file, which cameras write, holds a preview after the picture
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise ValueError("holds more than one picture, as an animation does; keep one of them")
    form = picture.format
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and form in ("PNG", "PPM")):
        deep = np.asarray(picture).astype(np.int64)
        return ((deep + 128) // 257).astype(np.uint8)  # 0..65535 to 0..255, rounded
    if picture.mode in ("I", "F"):
        first: np.ndarray = _numbers(np.asarray(picture)[None])[0]
        return first
    if picture.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
        grey = picture.mode in ("L", "LA", "La", "1")
        laid = Image.new("RGBA", picture.size, "white")
        laid.alpha_composite(picture.convert("RGBA"))
        picture = laid.convert("L" if grey else "RGB")
    return np.array(picture.convert("L" if picture.mode in ("1", "L") else "RGB"), dtype=np.uint8)


def _kept(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if min(height, width) <= MOST_SIDE or picture.dtype != np.uint8:
        return picture
    scale = MOST_SIDE / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def _coloured(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
