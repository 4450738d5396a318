"""What a model that reads text can take, found by trying before anything is trained: positions, tokens, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedquilt.adapters.blocks import only_blocks
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.data.table import Columns, Table
from fedquilt.models.causality import ordinary_tokens, sees_ahead

_SHORT = 2  # tokens of the shortest row that is tried
_MOVED = 1e-3  # how far padding may move a logit, in units of the greatest one


def refuse_padding_token(model: Any, tokenizer: Any, name: str) -> None:
    """Nothing, if the model has an embedding for the token that rows are padded with.

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
    return int(model.get_input_embeddings().weight.shape[0])


def longest_row(model: Any, blocks: Blocks, name: str, wanted: int) -> int:
    """The most tokens, up to ``wanted``, of a row that the model takes; tried on its first block.

    Raises
    ------
    ModelError
        if it does not even take a row of two.
    """
    tokens = ordinary_tokens(model, 64)

    def refusal(length: int) -> str:
        row = torch.tensor([tokens[place % len(tokens)] for place in range(length)])[None]
        try:
            with torch.no_grad(), only_blocks(model, blocks, [0]):
                getattr(model, "base_model", model)(input_ids=row, attention_mask=torch.ones_like(row))
        except Exception as error:  # what a model raises beyond its positions is its author's choice
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    fits, fails = min(_SHORT, wanted), wanted + 1
    if told := refusal(fits):
        raise ModelError(f"model '{name}': a trial with a row of {fits} tokens ended in {told}; choose another model")
    if not refusal(wanted):
        return wanted
    fails = wanted
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (fits, middle) if refusal(middle) else (middle, fails)
    return fits
