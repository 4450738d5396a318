"""Pretraining of the built-in image models: small ViTs that learn letters and symbols; digits are new to them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.core.errors import ConfigError, RunError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.glyphs import CLASSES, FONTS, SIDE, draw, glyph_pool
from fedquilt.models.tiny import new_vit
from fedquilt.models.whole_files import save_model
from fedquilt.pretrain.recipe import OnStep, check_settings, empty_folder, recipe_text, trained

SIZES: dict[str, dict[str, Any]] = {
    "4x32": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "initializer_range": 0.17,
    },
    "8x48": {
        "hidden_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 3,
        "intermediate_size": 144,
        "initializer_range": 0.14,
    },
    "12x64": {
        "hidden_size": 64,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "initializer_range": 0.12,  # about 1 / sqrt(hidden_size): from the usual 0.02 so narrow a model hardly learns
    },
}
"""Blocks x width, and what the architecture takes with them; the largest is the built-in ``glyph-vit``."""

DEFAULT_SIZE = "12x64"
HELD_OUT_FONTS = ("STIXGeneral", "cmss10")
"""Fonts that are never trained on; the accuracy on them says what the model makes of a hand it has not seen."""

_MEAN = _DEVIATION = 0.5
_HELD_OUT_ROWS = 2048

_COMMON: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining came to: its folder, accuracies in [0, 1], the loss of every step, and the seconds it took."""

    folder: Path
    accuracy_new_fonts: float
    accuracy_new_drawings: float
    losses: tuple[float, ...]
    seconds: float


def shape_of(size: str) -> dict[str, Any]:
    """The keyword arguments of the Hugging Face ``ViTConfig`` for this size.

    Raises
    ------
    ConfigError
        if there is no such size; names those there are.
    """
    if size not in SIZES:
        raise ConfigError([f"there is no size '{size}'{suggestion(size, list(SIZES))}; allowed: {', '.join(SIZES)}"])
    return {**_COMMON, **SIZES[size]}


def pretrain_glyphs(
    out: str | Path,
    *,
    rng: Rng,
    size: str = DEFAULT_SIZE,
    steps: int = 5000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    device: str = "cpu",
    progress: OnStep | None = None,
) -> Pretrained:
    """A ViT with all weights trained to tell ``CLASSES`` apart, saved in ``out`` as a Hugging Face folder.

    Every step sees fresh drawings.

    Parameters
    ----------
    out
        An empty or new folder; gets config.json, preprocessor_config.json, model.safetensors (float32) and recipe.toml.
    rng
        The random stream of initial weights and drawings.
    size
        One of ``SIZES``.
    steps, batch_size
        The number of optimiser steps, and images of a step.
    learning_rate, weight_decay, warmup
        As for ``trained``.
    label_smoothing
        The share of the target that is spread evenly over all classes, in [0, 1).
    device
        The torch device to train on.
    progress
        Called after every step with its number, the number of steps and the loss.

    Raises
    ------
    ConfigError
        if a setting is out of its range; names every one that is.
    RunError
        if ``out`` is not empty or cannot be written; raised before any training.
    TrainingError
        if the loss stops being a number.
    """
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
    }
    check_settings(settings)
    shape = shape_of(size)
    folder = empty_folder(Path(out))
    began = time.perf_counter()
    model: Any = new_vit(shape, CLASSES, rng.child("init")).to(device).train()
    fonts = tuple(font for font in FONTS if font not in HELD_OUT_FONTS)
    batches = _batches(fonts, batch_size, rng.child("train"))
    history = trained(
        model,
        (_loss(model, images.to(device), labels.to(device), label_smoothing) for images, labels in batches),
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        progress=progress,
    )
    model.eval()
    new_fonts = _accuracy(model, HELD_OUT_FONTS, rng.child("new fonts"), device)
    new_drawings = _accuracy(model, fonts, rng.child("new drawings"), device)
    result = Pretrained(folder, new_fonts, new_drawings, history, time.perf_counter() - began)
    _write(model, size, {"seed": rng.seed, **settings}, result)
    return result


def _batches(fonts: tuple[str, ...], batch_size: int, rng: Rng) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch of fresh drawings and their labels, without an end."""
    pool, generator = glyph_pool(fonts), rng.torch()
    while True:
        yield draw(pool, batch_size, generator)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    logits = model(pixel_values=_pixels(images)).logits  # (batch, class)
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def _pixels(images: Tensor) -> Tensor:
    """Images (n, 28, 28) in [0, 1] as the model takes them: (n, 1, 28, 28) in [-1, 1]."""
    return ((images - _MEAN) / _DEVIATION)[:, None]


@torch.no_grad()
def _accuracy(model: nn.Module, fonts: tuple[str, ...], rng: Rng, device: str) -> float:
    images, labels = draw(glyph_pool(fonts), _HELD_OUT_ROWS, rng.torch())
    guesses = [model(pixel_values=_pixels(part).to(device)).logits.argmax(-1).cpu() for part in images.split(256)]
    return float((torch.cat(guesses) == labels).float().mean())


def _write(model: Any, size: str, settings: dict[str, Any], result: Pretrained) -> None:
    folder = result.folder
    chosen = "" if size == DEFAULT_SIZE else f" --size {size}"
    command = f"fedquilt pretrain glyphs --out DIR{chosen} --steps {settings['steps']} --seed {settings['seed']}"
    came_out = {
        "num_classes": len(CLASSES),
        "accuracy_new_fonts": round(result.accuracy_new_fonts, 4),
        "accuracy_new_drawings": round(result.accuracy_new_drawings, 4),
    }
    recipe = recipe_text(command, {**settings, "held_out_fonts": HELD_OUT_FONTS}, came_out)
    try:
        save_model(model.to("cpu"), folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(), indent=2) + "\n", "utf-8")
        (folder / "recipe.toml").write_text(recipe, "utf-8")
    except OSError as error:
        raise RunError(
            f"cannot write the model to {folder}: {error.strerror or error}; free the disk or choose another folder"
        ) from error


def _preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_MEAN],
        "image_std": [_DEVIATION],
        "do_convert_rgb": False,
    }
