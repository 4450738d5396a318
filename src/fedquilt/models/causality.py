"""Whether a language model's tokens see the ones to come, found by trying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedquilt.core.errors import ModelError

_PLACES = 8  # tokens of a trial; each of them but the first is changed once
_NOISE = 256  # in units of the dtype's own precision: what sums in another order may differ by


def refuse_seeing_ahead(model: Any, name: str) -> None:
    """Nothing, if no token of the language model called ``name`` sees a later one.

    Raises
    ------
    ModelError
        if one does: trained and judged on next tokens, such a model reads the answer.
    """
    if sees_ahead(model):
        raise ModelError(
            f"model '{name}': a {model.config.model_type} model as this one is set sees the tokens to come (changing a "
            "later token changes what it says of earlier ones), so as a language model it would read the answer; "
            "choose a model that was trained to write, or, if this one was, set is_decoder to true in its config.json"
        )


def sees_ahead(model: Any, length: int = _PLACES) -> bool:
    """Whether another token at any place of a row changes the logits of earlier places.

    ``model`` has weights and gives ``logits`` (rows, tokens, vocabulary) of ``input_ids`` and ``attention_mask``. One
    forward pass: a row of ``length`` tokens, and the same row with one token changed, for places all over it.
    """
    rows, places = _changed(ordinary_tokens(model, length + 1), length)
    rows = rows.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.float()
    noise = _NOISE * torch.finfo(next(model.parameters()).dtype).eps * float(logits.abs().max())
    moved = (logits[1:] - logits[:1]).abs().amax(-1)  # (rows - 1, tokens)
    return any(float(row[:place].max()) > noise for row, place in zip(moved, places, strict=True))


def ordinary_tokens(model: Any, count: int) -> list[int]:
    """Numbers of ``count`` tokens that the model has an embedding for, from all over the vocabulary, none special."""
    size = model.get_input_embeddings().weight.shape[0]
    settings = {**vars(model.config), **vars(getattr(model.config, "text_config", None) or model.config)}
    special = {
        value for key, value in settings.items() if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    plain = [token for token in range(size) if token not in special]
    return [plain[place * len(plain) // count % len(plain)] for place in range(count)]


def _changed(tokens: list[int], length: int) -> tuple[Tensor, list[int]]:
    """A row of the first ``length`` tokens, copies of it with the last of ``tokens`` in one place, and these places."""
    places = sorted({1 + step * (length - 1) // _PLACES for step in range(_PLACES)} | {length - 1})
    rows = torch.tensor(tokens[:length]).repeat(1 + len(places), 1)
    for row, place in enumerate(places, start=1):
        rows[row, place] = tokens[-1]
    return rows, places
