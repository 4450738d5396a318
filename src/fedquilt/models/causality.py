"""Whether a language model's tokens see the ones to come, found by trying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.client.shallow import only_blocks
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks

_LONG = 256  # tokens; what attends in windows or chunks has several of them in so many
_NOISE = 256  # in units of the dtype's own precision: what sums in another order may differ by


def refuse_seeing_ahead(model: Any, name: str, blocks: Blocks | None = None, length: int = 0) -> None:
    """Nothing, if no token of the language model called ``name`` sees a later one.

    With ``blocks`` a row of ``length`` tokens is tried, too, on the first of them.

    Raises
    ------
    ModelError
        if one does: trained and judged on next tokens, such a model reads the answer.
    """
    try:
        ahead = sees_ahead(model) or (blocks is not None and sees_far_ahead(model, blocks, length))
    except Exception as error:  # what a model raises on a few tokens is its author's choice
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model '{name}': a trial with a few tokens failed ({told}); choose another model") from error
    if ahead:
        raise ModelError(
            f"model '{name}': a {model.config.model_type} model as this one is set sees the tokens to come (changing a "
            "later token changes what it says of earlier ones), so as a language model it would read the answer; "
            "choose a model that was trained to write, or set is_decoder to true in its config.json, if it can be a "
            "decoder (with adapter.kind = 'full' that is done for you, and what is exported says so)"
        )


def sees_far_ahead(model: Any, blocks: Blocks, length: int) -> bool:
    """Whether another token in the middle or at the end of a long row changes what the first block says before it.

    Blocks of unlike kinds may not do without each other: such a model is tried as a whole.
    """
    long = min(length, _LONG)
    try:
        with only_blocks(model, blocks, [0]):
            return sees_ahead(model, long, 2)
    except Exception:  # what a model raises when it is cut is its author's choice
        return sees_ahead(model, long, 2)


def sees_ahead(model: Any, length: int = 9, num_places: int = 8) -> bool:
    """Whether another token at any place of a row changes the logits of earlier places.

    ``model`` has weights and gives ``logits`` (rows, tokens, vocabulary) of ``input_ids`` and ``attention_mask``. One
    forward pass: a row of ``length`` tokens, and the same row with one token changed, for ``num_places`` places all
    over it.
    """
    rows, places = _changed(ordinary_tokens(model, length + 1), length, num_places)
    rows = rows.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.float()
    noise = _NOISE * torch.finfo(next(model.parameters()).dtype).eps * float(logits.abs().max())
    moved = (logits[1:] - logits[:1]).abs().amax(-1)  # (rows - 1, tokens)
    return any(float(row[:place].max()) > noise for row, place in zip(moved, places, strict=True))


def ordinary_tokens(model: Any, count: int) -> list[int]:
    """Numbers of ``count`` tokens that the model has an embedding for, from all over the vocabulary, none special."""
    try:
        table = model.get_input_embeddings()
        size = table.weight.shape[0]
    except NotImplementedError:  # of a model that makes its embeddings of characters, any numbers will do
        table, size = None, 128
    except AttributeError:  # a module of no library
        table = next((one for one in model.modules() if isinstance(one, nn.Embedding)), None)
        size = 128 if table is None else table.num_embeddings
    settings = {**vars(model.config), **vars(getattr(model.config, "text_config", None) or model.config)}
    special = {
        value for key, value in settings.items() if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    own = getattr(table, "padding_idx", None)  # from it some models count their positions
    special |= set() if own is None else {int(own)}
    plain = [token for token in range(size) if token not in special]
    return [plain[place * len(plain) // count % len(plain)] for place in range(count)]


def _changed(tokens: list[int], length: int, num_places: int) -> tuple[Tensor, list[int]]:
    """A row of the first ``length`` tokens, copies of it with the last of ``tokens`` in one place, and these places."""
    places = [1 + (step + 1) * (length - 1) // num_places - 1 for step in range(num_places)]
    places = sorted({place for place in places if place > 0})
    rows = torch.tensor(tokens[:length]).repeat(1 + len(places), 1)
    for row, place in enumerate(places, start=1):
        rows[row, place] = tokens[-1]
    return rows, places
