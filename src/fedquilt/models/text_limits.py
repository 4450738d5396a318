"""The limits of a text model, found by trial before training: positions, tokens, padding."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedquilt.client.shallow import only_blocks
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.data.table import Columns, Table, take
from fedquilt.models.causality import ordinary_tokens

_SHORT = 2  # tokens of the shortest row in a trial
_MOVED = 1e-4  # the most that padding may change a logit, relative to the largest one
_NOISE = 16  # the same in units of the precision of a 16-bit base, whose rounding depends on the shapes of a batch

_ROWS = Table("text", ["one", "one two three four five"], torch.zeros(2, dtype=torch.int64), ("0", "1"))


def refuse_padding_token(model: Any, tokenizer: Any, name: str) -> None:
    """Raise ModelError if the model has no embedding for the tokenizer's padding token; weights are not needed.

    Raises
    ------
    ModelError
        names the token and the number of embeddings.
    """
    size, token = num_embeddings(model), tokenizer.pad_token_id
    if not 0 <= token < size:
        raise ModelError(
            f"model '{name}': its tokenizer pads with '{tokenizer.pad_token}', number {token}, but the model has "
            f"embeddings for {size} tokens, 0 to {size - 1}; give the tokenizer a padding token that the model knows "
            f"(such as its end token), or the model more embeddings (resize_token_embeddings({len(tokenizer)})), and "
            "save it"
        )


def num_embeddings(model: Any) -> int:
    """The number of tokens that the model has an embedding for."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except NotImplementedError:  # a model that reads characters by code point takes every one
        return sys.maxunicode + 1


def longest_row(model: Any, blocks: Blocks, name: str, wanted: int) -> int:
    """The longest row, up to ``wanted`` tokens, that the model takes; tried on its first block alone if that runs.

    Raises
    ------
    ModelError
        if the model fails even on a row of two tokens.
    """
    tokens = ordinary_tokens(model, 64)

    def refusal(shape: Callable[[], AbstractContextManager[object]], length: int) -> str:
        row = torch.tensor([tokens[index % len(tokens)] for index in range(length)])[None]
        try:
            with torch.no_grad(), shape():
                getattr(model, "base_model", model)(input_ids=row, attention_mask=torch.ones_like(row))
        except Exception as error:  # a model may raise anything beyond its positions
            return described(error)
        return ""

    fits, fails = min(_SHORT, wanted), wanted + 1
    if reason := refusal(nullcontext, fits):  # the whole model first: some choose their attention in this call
        raise ModelError(f"model '{name}': a trial with a row of {fits} tokens ended in {reason}; choose another one")
    shape: Callable[[], AbstractContextManager[object]] = partial(only_blocks, model, blocks, [0])
    if refusal(shape, fits):
        shape = nullcontext
    middle = wanted
    while fails - fits > 1:
        fits, fails = (fits, middle) if refusal(shape, middle) else (middle, fails)
        middle = (fits + fails) // 2
    return fits


def refuse_moved_by_padding(
    model: Any, encode: Callable[[Table], Columns], prepare: Callable[[Columns], dict[str, Tensor]], name: str
) -> None:
    """Raise ModelError if the logits of a row change when the row is padded to the length of a longer one.

    Raises
    ------
    ModelError
        if they change, because results would then depend on the other rows of a batch, or if the trial fails.
    """
    rows = encode(_ROWS)
    real = rows["attention_mask"][0].bool()
    try:
        with torch.no_grad():
            alone, beside = (model(**prepare(take(rows, chosen))).logits[0].float() for chosen in ([0], [0, 1]))
    except Exception as error:
        raise ModelError(
            f"model '{name}': a trial with two short rows ended in {described(error)}; choose another"
        ) from error
    if alone.dim() > 1:  # a language model has logits for every token
        beside = beside[: len(alone)][real[: len(alone)]]
        alone = alone[real[: len(alone)]]
    moved, most = float((alone - beside).abs().max()), float(alone.abs().max())
    if not moved <= most_moved(model) * most:
        raise ModelError(
            f"model '{name}': padding changes the logits of a {model.config.model_type} model (by {moved:.2g}; the "
            f"largest logit is {most:.2g}), so its results would depend on the other rows of a batch; choose a model "
            "that respects its attention mask"
        )


def takes_left_padding(model: Any, name: str) -> bool:
    """Whether a language model generates the same tokens after a prompt with and without padding on its left.

    Raises
    ------
    ModelError
        if it cannot generate text at all.
    """
    tokens, pad = ordinary_tokens(model, 7), model.generation_config.pad_token_id
    try:
        alone = _written_logits(model, [tokens[:3]], pad)
    except Exception as error:
        raise ModelError(
            f"model '{name}': generating a few tokens ended in {described(error)}; choose another model, or leave "
            "data.answers out"
        ) from error
    try:
        beside = _written_logits(model, [[pad] * 4 + tokens[:3], tokens], pad)
    except Exception:  # a model that does not take the mask generates one prompt at a time
        return False
    return bool((alone - beside).abs().max() <= most_moved(model) * alone.abs().max())


def _written_logits(model: Any, prompts: list[list[int]], pad: int) -> Tensor:
    """The logits of three tokens after the first prompt, (3, vocabulary); the mask is 0 on ``pad`` at its start."""
    ids = torch.tensor(prompts)
    mask = ((ids != pad).cumsum(1) > 0).long()
    config = copy(model.generation_config)
    config.update(max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return torch.stack(made.logits)[:, 0].float()


def most_moved(model: Any) -> float:
    """The most that other rows, or padding, may change a logit of ``model``, relative to the largest one."""
    return max(_MOVED, _NOISE * torch.finfo(next(model.parameters()).dtype).eps)


def described(error: Exception) -> str:
    """An exception of a model's own code in one line."""
    return f"{type(error).__name__}: {str(error).strip() or 'no reason'}".splitlines()[0].rstrip(".")
