"""What a model that reads text can take, found by trying before anything is trained: positions, tokens, padding."""

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

_SHORT = 2  # tokens of the shortest row that is tried
_MOVED = 1e-4  # how far padding may move a logit, in units of the greatest one

_ROWS = Table("text", ["one", "one two three four five"], torch.zeros(2, dtype=torch.int64), ("0", "1"))


def refuse_padding_token(model: Any, tokenizer: Any, name: str) -> None:
    """Nothing, if the model, which may have no weights, has an embedding for the token that rows are padded with.

    Raises
    ------
    ModelError
        if it has none.
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
    """How many tokens the model has an embedding for."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except NotImplementedError:  # of a model that reads characters by their numbers, there is one for each
        return sys.maxunicode + 1


def longest_row(model: Any, blocks: Blocks, name: str, wanted: int) -> int:
    """The most tokens, up to ``wanted``, of a row that the model takes; tried on its first block where it can be cut.

    Raises
    ------
    ModelError
        if it does not even take a row of two.
    """
    tokens = ordinary_tokens(model, 64)

    def refusal(shape: Callable[[], AbstractContextManager[object]], length: int) -> str:
        row = torch.tensor([tokens[place % len(tokens)] for place in range(length)])[None]
        try:
            with torch.no_grad(), shape():
                getattr(model, "base_model", model)(input_ids=row, attention_mask=torch.ones_like(row))
        except Exception as error:  # what a model raises beyond its positions is its author's choice
            return _told(error)
        return ""

    fits, fails = min(_SHORT, wanted), wanted + 1
    if told := refusal(nullcontext, fits):  # the whole model first: some choose their kind of attention by it
        raise ModelError(f"model '{name}': a trial with a row of {fits} tokens ended in {told}; choose another one")
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
    """Nothing, if what the model says of a row is the same alone and beside a longer one.

    Raises
    ------
    ModelError
        if it is not, so that every result would depend on who shares a batch, or a row of text ends in an error.
    """
    rows = encode(_ROWS)
    real = rows["attention_mask"][0].bool()
    try:
        with torch.no_grad():
            alone, beside = (model(**prepare(take(rows, chosen))).logits[0].float() for chosen in ([0], [0, 1]))
    except Exception as error:
        raise ModelError(
            f"model '{name}': a trial with two short rows ended in {_told(error)}; choose another"
        ) from error
    if alone.dim() > 1:  # a language model's: of every token
        beside = beside[: len(alone)][real[: len(alone)]]
        alone = alone[real[: len(alone)]]
    moved, most = float((alone - beside).abs().max()), float(alone.abs().max())
    if not moved <= _MOVED * most:
        raise ModelError(
            f"model '{name}': padding changes what a {model.config.model_type} model says of a row (a logit moves by "
            f"{moved:.2g}, the greatest is {most:.2g}), so its results would depend on the rows that share a batch; "
            "choose a model that heeds its attention mask"
        )


def takes_left_padding(model: Any, name: str) -> bool:
    """Whether a language model writes the same behind a prompt that is padded on the left as behind one that is not.

    Raises
    ------
    ModelError
        if it cannot write at all.
    """
    tokens, pad = ordinary_tokens(model, 7), model.generation_config.pad_token_id
    try:
        alone = _written_logits(model, [tokens[:3]], pad)
    except Exception as error:
        raise ModelError(
            f"model '{name}': writing a few tokens ended in {_told(error)}; choose another model, or leave "
            "data.answers out"
        ) from error
    try:
        beside = _written_logits(model, [[pad] * 4 + tokens[:3], tokens], pad)
    except Exception:  # one that does not take the mask writes one prompt at a time
        return False
    return bool((alone - beside).abs().max() <= _MOVED * alone.abs().max())


def _written_logits(model: Any, prompts: list[list[int]], pad: int) -> Tensor:
    """The logits of three tokens behind the first prompt, (3, vocabulary); the mask is 0 on ``pad`` at its start."""
    ids = torch.tensor(prompts)
    mask = ((ids != pad).cumsum(1) > 0).long()
    config = copy(model.generation_config)
    config.update(max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return torch.stack(made.logits)[:, 0].float()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason'}".splitlines()[0].rstrip(".")
