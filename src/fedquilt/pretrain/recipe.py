"""What all pretrainings share: checked settings, an empty folder, the loop of AdamW, and the text of recipe.toml."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.core.errors import ConfigError, RunError, TrainingError

OnStep = Callable[[int, int, float], None]
"""``progress(step, steps, loss)``, called after every step."""


def check_settings(settings: Mapping[str, float]) -> None:
    """Refuse settings out of their range.

    Raises
    ------
    ConfigError
        names every setting that is, with what is allowed.
    """
    finite = {name: value for name, value in settings.items() if math.isfinite(value)}
    problems = [
        f"{name} is {value}; allowed: {_RULES[name][1]}"
        for name, value in settings.items()
        if name not in finite or not _RULES[name][0](value)
    ]
    if problems:
        raise ConfigError(problems)


_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "steps": (lambda value: value >= 1, "a whole number from 1"),
    "batch_size": (lambda value: value >= 1, "a whole number from 1"),
    "length": (lambda value: value >= 8, "a whole number from 8"),
    "learning_rate": (lambda value: value > 0, "a number above 0"),
    "weight_decay": (lambda value: value >= 0, "a number from 0"),
    "warmup": (lambda value: 0 <= value < 1, "a share of the steps, from 0 to below 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
}


def empty_folder(folder: Path) -> Path:
    """The folder, made if it is not there, and known to be empty and to take files.

    Raises
    ------
    RunError
        if it holds anything, or cannot be written.
    """
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


def trained(
    model: nn.Module,
    losses: Iterable[Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    progress: OnStep | None,
) -> tuple[float, ...]:
    """The loss of every step, after all weights of ``model`` took ``steps`` steps of AdamW; the model is changed.

    Gradients are clipped to norm 1.

    Parameters
    ----------
    model
        The model.
    losses
        Gives the loss of the model as it is then, a scalar, once a step.
    steps
        The number of optimiser steps.
    learning_rate
        The learning rate after the warm-up, from which it falls to zero as a cosine.
    weight_decay
        The weight decay of matrices; biases, norms and embeddings have none.
    warmup
        The share of the steps, in [0, 1), over which the learning rate rises linearly.
    progress
        Called after every step with its number, the number of steps and the loss.

    Raises
    ------
    TrainingError
        if the loss stops being a number.
    """
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, warmup))
    history: list[float] = []
    for step, loss in zip(range(steps), losses, strict=False):
        history.append(float(loss.detach()))
        if not math.isfinite(history[-1]):
            raise TrainingError(
                f"loss is {history[-1]} at step {step}: lower the learning rate (it is {learning_rate}) and start again"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(step + 1, steps, history[-1])
    return tuple(history)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, the class token, the positions and the embeddings of tokens do not."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim >= 2 and "embed" not in name]
    kept = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in kept]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: ``(step + 1) / w`` below ``w`` warm-up steps, then half a cosine down to 0."""
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def recipe_text(command: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The text of recipe.toml: the command, the settings that made the weights, and what came out."""
    lines = [f'command = "{command}"', f'torch = "{torch.__version__}"', "", "[settings]"]
    lines += [f"{name} = {_toml(value)}" for name, value in settings.items()]
    lines += ["", "[result]", *(f"{name} = {_toml(value)}" for name, value in result.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return repr(value)
