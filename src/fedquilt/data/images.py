"""Images of any source as one uint8 tensor."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fedquilt.core.errors import DataError


def stacked(values: Sequence[Any] | np.ndarray, where: str) -> Tensor:
    """The images as uint8 ``(n, H, W)``, or ``(n, H, W, 3)`` if any of them has colour.

    ``values`` is one array, or a list of pillow images, arrays or encoded files. Images of unequal size are resized
    (bilinear) to the size of the first. Numbers outside uint8 are accepted as fractions in 0..1, which are multiplied
    by 255, or as whole numbers in 0..255.

    Raises
    ------
    DataError
        if something is not an image; names ``where`` it came from.
    """
    if isinstance(values, np.ndarray):
        return torch.from_numpy(_checked(values, where))
    pictures = [_picture(value, f"{where}, row {row}") for row, value in enumerate(values)]
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    size = pictures[0].size
    ready = [picture.convert(mode) for picture in pictures]
    ready = [picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR) for picture in ready]
    return torch.from_numpy(np.stack([np.asarray(picture, dtype=np.uint8) for picture in ready]))


def _checked(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise DataError(
            f"{where}: shape {tuple(array.shape)} is not a stack of images; allowed are (n, height, width) and "
            "(n, height, width, channels) with 1 or 3 channels, channels last"
        )
    return _bytes(array, where)


def _bytes(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise DataError(
            f"{where}: {array.dtype} values are not pixels; allowed are numbers in 0..255 or fractions in 0..1"
        )
    numbers = array.astype(np.float64)
    low, high = float(numbers.min(initial=0)), float(numbers.max(initial=0))
    if not (low >= 0 and high <= 255):  # also refuses NaN
        raise DataError(f"{where}: pixels run from {low:g} to {high:g}; allowed are 0..255 or fractions in 0..1")
    fractions = np.issubdtype(array.dtype, np.floating) and high <= 1
    return np.round(numbers * 255 if fractions or array.dtype == bool else numbers).astype(np.uint8)


def _picture(value: Any, where: str) -> Image.Image:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, bytes | str):
            value = Image.open(value if isinstance(value, str) else io.BytesIO(value))
            value.load()
        if isinstance(value, Image.Image):
            return value
        return Image.fromarray(_checked(np.asarray(value)[None], where)[0])
    except (UnidentifiedImageError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{where}: is not an image ({error})") from error
