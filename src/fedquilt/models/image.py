"""Preparing images for a model: stored as uint8, resized and normalised on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.data.readers.images import Pictures, of_one_size
from fedquilt.data.table import Columns, Table


@dataclass(frozen=True)
class Pixels:
    """The images that a model takes.

    Attributes
    ----------
    size
        Height and width; None for any.
    num_channels
        The number of channels.
    mean, std
        The normalisation, per channel or one for all.
    scale
        The factor on uint8 pixels before the normalisation.
    """

    size: tuple[int, int] | None
    num_channels: int
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    scale: float = 1 / 255


def pixels_of(config: Any, preprocessor: Mapping[str, Any]) -> Pixels:
    """The images that a model takes, by its config and its preprocessor_config.json."""
    config = getattr(config, "vision_config", None) or config  # multimodal models have a config of their own for images
    size = getattr(config, "image_size", None) or preprocessor.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    normalise = preprocessor.get("do_normalize", True)
    return Pixels(
        size=(size, size) if isinstance(size, int) else tuple(size) if size else None,
        num_channels=getattr(config, "num_channels", 3),
        mean=preprocessor.get("image_mean", (0.5,)) if normalise else (0.0,),
        std=preprocessor.get("image_std", (0.5,)) if normalise else (1.0,),
        scale=preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0,
    )


def encode_images(table: Table, size: tuple[int, int] | None = None) -> Columns:
    """Columns pixel_values, uint8 (rows, height, width, channels), and labels, int64 (rows,).

    Images of different sizes are resized to ``size``, the model's (height, width), or to their most frequent size if
    the model takes any.

    Raises
    ------
    DataError
        if the rows are not images, or have no labels.
    """
    images = of_one_size(table.inputs, size) if isinstance(table.inputs, Pictures) else table.inputs
    if not isinstance(images, Tensor):
        raise DataError("the model takes images, but the data holds text; set model.task and data.source to one kind")
    if table.labels is None:
        raise DataError("the data has no labels, and a classifier needs them; name their column in data.label")
    if images.dtype != torch.uint8 or images.dim() not in (3, 4):
        raise DataError(
            f"images are {images.dtype} {tuple(images.shape)}; they must be uint8, (n, height, width) or "
            "(n, height, width, channels)"
        )
    return {"pixel_values": images if images.dim() == 4 else images.unsqueeze(-1), "labels": table.labels.long()}


def image_preparer(pixels: Pixels, dtype: torch.dtype = torch.float32) -> Callable[[Columns], dict[str, Tensor]]:
    """``prepare(columns)``: pixel_values of type ``dtype``, (rows, channels, height, width), on the columns' device.

    Grey images are repeated over the channels, colour images averaged to grey; a fourth channel (alpha) is dropped.
    Resizing is bilinear with antialiasing; then ``(x * scale - mean) / std``.
    """
    constants: dict[torch.device, tuple[Tensor, ...]] = {}  # made once: they cost as much as normalising a small batch

    def prepare(columns: Columns) -> dict[str, Tensor]:
        x = columns["pixel_values"].movedim(-1, 1).float()  # (rows, channels, height, width)
        x = _with_channels(x, pixels.num_channels)
        if pixels.size is not None and x.shape[-2:] != pixels.size:
            x = F.interpolate(x, size=pixels.size, mode="bilinear", antialias=True)
        if x.device not in constants:
            both = (_per_channel(values, pixels.num_channels, x) for values in (pixels.mean, pixels.std))
            constants[x.device] = tuple(both)
        mean, std = constants[x.device]
        return {"pixel_values": ((x * pixels.scale - mean) / std).to(dtype)}

    return prepare


def _with_channels(x: Tensor, num_channels: int) -> Tensor:
    if x.shape[1] == 4:
        x = x[:, :3]
    if x.shape[1] == num_channels:
        return x
    return x.mean(dim=1, keepdim=True).expand(-1, num_channels, -1, -1)


def _per_channel(values: Sequence[float], num_channels: int, like: Tensor) -> Tensor:
    numbers = torch.tensor(list(values), dtype=like.dtype, device=like.device)
    if len(numbers) != num_channels:
        numbers = numbers.mean().expand(num_channels)
    return numbers.view(1, -1, 1, 1)
