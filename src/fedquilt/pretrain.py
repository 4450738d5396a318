"""Pretraining of the built-in model: a small ViT that learns letters and symbols, so that digits are new to it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.core.errors import ConfigError, RunError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.data.glyphs import CLASSES, FONTS, SIDE, draw, glyph_pool
from fedquilt.models.hf import save_model
from fedquilt.models.tiny import new_vit

ARCHITECTURE: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.12,  # about 1 / sqrt(hidden_size): from the usual 0.02 so narrow a model hardly learns
}
HELD_OUT_FONTS = ("STIXGeneral", "cmss10")
"""Fonts that are never trained on; the accuracy on them says what the model makes of a hand it has not seen."""

_MEAN = _DEVIATION = 0.5
_HELD_OUT_ROWS = 2048


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining came to: its folder, accuracies in [0, 1], the loss of every step, and the seconds it took."""

    folder: Path
    accuracy_new_fonts: float
    accuracy_new_drawings: float
    losses: tuple[float, ...]
    seconds: float


def pretrain_glyphs(
    out: str | Path,
    *,
    rng: Rng,
    steps: int = 5000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Pretrained:
    """A ViT with all weights trained to tell ``CLASSES`` apart, saved in ``out`` as a Hugging Face folder.

    Every step sees fresh drawings. AdamW; the learning rate rises linearly over the first ``warmup`` (a share of the
    steps) and falls to zero as a cosine. ``progress(step, steps, loss)`` is called after every step. ``out`` gets
    config.json, preprocessor_config.json, model.safetensors (float32) and recipe.toml.

    Raises
    ------
    ConfigError
        if a setting is out of its range; names every one that is.
    RunError
        if ``out`` is not empty or cannot be written; raised before any training.
    TrainingError
        if the loss stops being a number.
    """
    _check(steps, batch_size, learning_rate, weight_decay, warmup, label_smoothing)
    folder = _empty_folder(Path(out))
    began = time.perf_counter()
    model: Any = new_vit(ARCHITECTURE, CLASSES, rng.child("init")).to(device).train()
    fonts = tuple(font for font in FONTS if font not in HELD_OUT_FONTS)
    pool, generator = glyph_pool(fonts), rng.child("train").torch()
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, warmup))
    losses = []
    for step in range(steps):
        images, labels = draw(pool, batch_size, generator)
        logits = model(pixel_values=_pixels(images).to(device)).logits  # (batch, class)
        loss = F.cross_entropy(logits, labels.to(device), label_smoothing=label_smoothing)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"loss is {losses[-1]} at step {step}: lower the learning rate (it is {learning_rate}) and start again"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(step + 1, steps, losses[-1])
    model.eval()
    new_fonts = _accuracy(model, HELD_OUT_FONTS, rng.child("new fonts"), device)
    new_drawings = _accuracy(model, fonts, rng.child("new drawings"), device)
    result = Pretrained(folder, new_fonts, new_drawings, tuple(losses), time.perf_counter() - began)
    settings = {
        "seed": rng.seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
    }
    _write(model, settings, result)
    return result


def _check(
    steps: int, batch_size: int, learning_rate: float, weight_decay: float, warmup: float, label_smoothing: float
) -> None:
    rules = [
        ("steps", steps, steps >= 1, "a whole number from 1"),
        ("batch_size", batch_size, batch_size >= 1, "a whole number from 1"),
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "a number above 0"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a number from 0"),
        ("warmup", warmup, 0 <= warmup < 1, "a share of the steps, from 0 to below 1"),
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "a number from 0 to below 1"),
    ]
    problems = [f"{name} is {value}; allowed: {allowed}" for name, value, good, allowed in rules if not good]
    if problems:
        raise ConfigError(problems)


def _empty_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
        (folder / "recipe.toml").touch()
        (folder / "recipe.toml").unlink()
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    if taken:
        raise RunError(f"{folder} is not empty; choose another folder, or empty it first")
    return folder


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, layer norms, the class token and the positions do not."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim >= 2 and "embeddings" not in name]
    kept = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in kept]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: ``(step + 1) / w`` below ``w`` warm-up steps, then half a cosine down to 0."""
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _pixels(images: Tensor) -> Tensor:
    """Images (n, 28, 28) in [0, 1] as the model takes them: (n, 1, 28, 28) in [-1, 1]."""
    return ((images - _MEAN) / _DEVIATION)[:, None]


@torch.no_grad()
def _accuracy(model: nn.Module, fonts: tuple[str, ...], rng: Rng, device: str) -> float:
    images, labels = draw(glyph_pool(fonts), _HELD_OUT_ROWS, rng.torch())
    guesses = [model(pixel_values=_pixels(part).to(device)).logits.argmax(-1).cpu() for part in images.split(256)]
    return float((torch.cat(guesses) == labels).float().mean())


def _write(model: Any, settings: dict[str, Any], result: Pretrained) -> None:
    folder = result.folder
    try:
        save_model(model.to("cpu"), folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(), indent=2) + "\n", "utf-8")
        (folder / "recipe.toml").write_text(_recipe(settings, result), "utf-8")
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


def _recipe(settings: dict[str, Any], result: Pretrained) -> str:
    """The text of recipe.toml: the command, the settings that made the weights, and what came out."""
    command = f"fedquilt pretrain glyphs --out DIR --steps {settings['steps']} --seed {settings['seed']}"
    lines = [f'command = "{command}"', f'torch = "{torch.__version__}"', "", "[settings]"]
    lines += [f"{name} = {value!r}" for name, value in settings.items()]
    lines += ["held_out_fonts = " + json.dumps(HELD_OUT_FONTS), "", "[result]", f"num_classes = {len(CLASSES)}"]
    lines += [
        f"accuracy_new_fonts = {result.accuracy_new_fonts:.4f}",
        f"accuracy_new_drawings = {result.accuracy_new_drawings:.4f}",
    ]
    return "\n".join(lines) + "\n"
