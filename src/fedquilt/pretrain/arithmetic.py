"""Pretraining of the built-in language models on generated arithmetic text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from fedquilt.core.errors import RunError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import writing_task
from fedquilt.data.synthetic.arithmetic import is_held_out
from fedquilt.data.synthetic.arithmetic_kinds import KINDS, quantities
from fedquilt.models.hf import load_model
from fedquilt.models.locate import find_source
from fedquilt.models.small_tokenizers import MARKS, new_tokenizer, save_tokenizer
from fedquilt.models.tiny import new_causal_lm
from fedquilt.models.whole_files import save_model
from fedquilt.pretrain.arithmetic_models import GROWN, SHAPES, family_of, grown, texts, usual
from fedquilt.pretrain.recipe import OnStep, check_settings, empty_folder, recipe_text, trained

POSITIONS = 512
"""How many tokens the models can read at once."""

_VOCABULARY_TEXT, _CHUNK = 20_000, 2_000  # texts
_NUM_SUMS = 256  # of every kind


@dataclass(frozen=True)
class PretrainedText:
    """What a pretraining came to.

    ``fresh_loss`` is nats a token on new text; ``new`` and ``known`` are by kind of sum the shares, in [0, 1], of plain
    statements completed without a mistake, with operands that are held out and with others.
    """

    folder: Path
    num_weights: int
    fresh_loss: float
    new: Mapping[str, float]
    known: Mapping[str, float]
    losses: tuple[float, ...]
    seconds: float


def pretrain_arithmetic(
    name: str,
    out: str | Path,
    *,
    rng: Rng,
    steps: int | None = None,
    batch_size: int | None = None,
    length: int = 80,
    learning_rate: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
    device: str = "cpu",
    progress: OnStep | None = None,
) -> PretrainedText:
    """A small causal language model with a tokenizer of its own, trained on drawn text about quantities.

    Every step sees fresh texts, packed end to end.

    Parameters
    ----------
    name
        One of ``SHAPES``.
    out
        An empty or new folder; gets config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json and
        recipe.toml, all at the end.
    rng
        The random stream of tokenizer, initial weights and texts.
    steps, batch_size, length
        The number of optimiser steps, rows of a step, and tokens of a row; the model's ``usual`` ones if left out.
    learning_rate, weight_decay, warmup
        As for ``trained``; the model's ``usual`` learning rate if left out.
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
    own = usual(name, steps, batch_size, learning_rate)
    settings = {**own._asdict(), "length": length, "weight_decay": weight_decay, "warmup": warmup}
    check_settings(settings)
    folder = empty_folder(Path(out))
    began = time.perf_counter()
    stream = rng.child("arithmetic", name)
    tokenizer, model = _untrained(name, stream, device)
    batches = packed(tokenizer, name, own.batch_size, length, stream.child("train"))
    history = trained(
        model,
        (_loss(model, rows.to(device)) for rows in batches),
        steps=own.steps,
        learning_rate=own.learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        progress=progress,
    )
    model.half().float().eval()  # measured as it is saved
    result = PretrainedText(
        folder,
        sum(weight.numel() for weight in model.parameters()),
        _fresh_loss(model, tokenizer, name, length, stream.child("fresh"), device),
        {kind: _accuracy(model, tokenizer, kind, True, stream.child("new", kind), device) for kind in KINDS},
        {kind: _accuracy(model, tokenizer, kind, False, stream.child("known", kind), device) for kind in KINDS},
        history,
        time.perf_counter() - began,
    )
    _write(model, tokenizer, name, {"seed": rng.seed, **settings}, result)
    return result


def _untrained(name: str, rng: Rng, device: str) -> tuple[Tokenizer, Any]:
    """The model with initial weights, and its tokenizer: of drawn text, or those of the model that it grows from."""
    family = family_of(name)
    if name not in GROWN:
        drawn = texts(name, _VOCABULARY_TEXT, rng.child("vocabulary"))
        tokenizer = new_tokenizer(family, SHAPES[name]["vocab_size"], drawn)
        return tokenizer, new_causal_lm(_config(name, tokenizer), rng.child("init")).to(device).train()
    small = find_source(f"arith-{family}", meta=False, max_length=POSITIONS)
    tokenizer = Tokenizer.from_file(f"{small.location}/tokenizer.json")
    model = new_causal_lm(_config(name, tokenizer), rng.child("init"))
    grown(model, load_model(small.name, writing_task(), num_classes=None, rng=rng).model)
    return tokenizer, model.to(device).train()


def packed(tokenizer: Tokenizer, name: str, batch_size: int, length: int, rng: Rng) -> Iterator[Tensor]:
    """Batch after batch of token numbers, int64 (``batch_size``, ``length``): texts end to end, without an end.

    Every text begins with the start token and ends with the end token; the row's edge may cut it.

    Parameters
    ----------
    tokenizer, name
        The tokenizer, and the name of its model, which says what the texts and the end token are.
    batch_size, length
        Rows of a batch, and tokens of a row.
    rng
        The random stream of the texts.
    """
    marks = MARKS[family_of(name)]
    end = marks.index(marks.end)  # the special tokens are numbered first
    waiting: list[int] = []
    chunk = 0
    while True:
        while len(waiting) < batch_size * length:
            for text in tokenizer.encode_batch(texts(name, _CHUNK, rng.child(chunk))):
                waiting += [*text.ids, end]
            chunk += 1
        rows, waiting = waiting[: batch_size * length], waiting[batch_size * length :]
        yield torch.tensor(rows).view(batch_size, length)


def _config(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    marks = MARKS[family_of(name)]
    return {
        **SHAPES[name],
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": POSITIONS,
        "attention_dropout": 0.0,
        "pad_token_id": tokenizer.token_to_id(marks.pad),
        "bos_token_id": tokenizer.token_to_id(marks.start),
        "eos_token_id": tokenizer.token_to_id(marks.end),
    }


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next token, in nats, over rows (row, length)."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]  # (row, length - 1, token)
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def _fresh_loss(model: nn.Module, tokenizer: Tokenizer, name: str, length: int, rng: Rng, device: str) -> float:
    batches = packed(tokenizer, name, 32, length, rng)
    losses = [float(_loss(model, rows.to(device))) for rows, _ in zip(batches, range(8), strict=False)]
    return math.fsum(losses) / len(losses)


@torch.no_grad()
def _accuracy(model: nn.Module, tokenizer: Tokenizer, kind: str, held_out: bool, rng: Rng, device: str) -> float:
    """The share of drawn sums whose right side is, token by token, what the model deems likeliest, and not longer."""
    draws = rng.numpy()
    digits = {tokenizer.token_to_id(digit) for digit in "0123456789"}
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < _NUM_SUMS:
        operands = KINDS[kind].draw(draws)
        if is_held_out(kind, operands) == held_out:
            left, sign, answer = KINDS[kind].says.format(**quantities(kind, operands)).partition(" = ")
            # digits and the space before them are tokens of their own, so a sum may be cut there
            wanted = tokenizer.encode(answer, add_special_tokens=False).ids
            pairs.append((tokenizer.encode(left + sign).ids, wanted))
    longest = max(len(prompt) + len(wanted) for prompt, wanted in pairs)
    # what comes behind a token cannot touch it, so any token may fill a row
    rows = [[*prompt, *wanted, *[0] * (longest - len(prompt) - len(wanted))] for prompt, wanted in pairs]
    guesses = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits.argmax(-1).tolist()
    right = 0
    for (prompt, wanted), guess in zip(pairs, guesses, strict=True):
        *said, after = guess[len(prompt) - 1 : len(prompt) + len(wanted)]
        right += said == wanted and after not in digits
    return right / _NUM_SUMS


def _write(model: Any, tokenizer: Tokenizer, name: str, settings: dict[str, Any], result: PretrainedText) -> None:
    command = (
        f"fedquilt pretrain arithmetic --out DIR --only {name} --steps {settings['steps']} --seed {settings['seed']}"
    )
    came_out: dict[str, Any] = {"num_weights": result.num_weights, "fresh_loss": round(result.fresh_loss, 4)}
    for kind in KINDS:
        came_out[f"accuracy_new_{kind.replace('-', '_')}"] = round(result.new[kind], 4)
        came_out[f"accuracy_known_{kind.replace('-', '_')}"] = round(result.known[kind], 4)
    try:
        save_tokenizer(tokenizer, family_of(name), POSITIONS, result.folder)
        save_model(model.to("cpu").half(), result.folder)
        (result.folder / "recipe.toml").write_text(recipe_text(command, settings, came_out), "utf-8")
    except OSError as error:
        raise RunError(
            f"cannot write the model to {result.folder}: {error.strerror or error}; "
            "free the disk or choose another folder"
        ) from error
