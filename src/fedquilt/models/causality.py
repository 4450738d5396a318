"""A test by trial whether a language model attends to later tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedquilt.client.shallow import only_blocks
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks

_LONG = 256  # tokens; long enough to hold several windows or chunks of local attention
_NOISE = 256  # tolerance in units of the dtype's precision, for sums in a different order
_MOST_NOISE = 1 / 16  # the largest tolerance, that of 16-bit numbers


def refuse_seeing_ahead(model: Any, name: str, blocks: Blocks | None = None, length: int = 0) -> None:
    """Raise ModelError if the language model called ``name`` attends to later tokens.

    With ``blocks``, a row of ``length`` tokens is also tried on the first block.

    Raises
    ------
    ModelError
        if changing a token changes the logits of earlier tokens: trained and evaluated on next tokens, such a model
        sees the answer. Also if the trial itself fails.
    """
    try:
        ahead = sees_ahead(model) or (blocks is not None and sees_far_ahead(model, blocks, length))
    except Exception as error:  # a model may raise anything here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model '{name}': a trial with a few tokens failed ({reason}); choose another model"
        ) from error
    if ahead:
        raise ModelError(
            f"model '{name}': a {model.config.model_type} model with this configuration attends to later tokens "
            "(changing a token changes the logits of earlier ones), so as a language model it would see the answer; "
            "choose a model that was trained as a decoder, or set is_decoder to true in its config.json if it can be a "
            "decoder (adapter.kind = 'full' does so by itself, and exports it)"
        )


def sees_far_ahead(model: Any, blocks: Blocks, length: int) -> bool:
    """Whether changing a token in the middle or at the end of a long row changes earlier outputs of the first block.

    A model that does not run with its first block alone is tried as a whole.
    """
    long = min(length, _LONG)
    try:
        with only_blocks(model, blocks, [0]):
            return sees_ahead(model, long, 2)
    except Exception:  # a model with one block may raise anything
        return sees_ahead(model, long, 2)


def sees_ahead(model: Any, length: int = 9, num_positions: int = 8) -> bool:
    """Whether changing a token of a row changes the logits at earlier positions.

    ``model`` has weights and maps ``input_ids`` and ``attention_mask`` to ``logits`` (rows, tokens, vocabulary). One
    forward pass takes a row of ``length`` tokens, and copies of it with one token changed at each of ``num_positions``
    positions spread over the row.
    """
    rows, positions = _changed(ordinary_tokens(model, length + 1), length, num_positions)
    rows = rows.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.float()
    precision = torch.finfo(next(model.parameters()).dtype).eps
    noise = min(_MOST_NOISE, _NOISE * precision) * float(logits.abs().max())
    moved = (logits[1:] - logits[:1]).abs().amax(-1)  # (rows - 1, tokens)
    return any(float(row[:position].max()) > noise for row, position in zip(moved, positions, strict=True))


def ordinary_tokens(model: Any, count: int) -> list[int]:
    """``count`` token numbers spread over the model's vocabulary, none of them special."""
    try:
        table = model.get_input_embeddings()
        size = table.weight.shape[0]
    except NotImplementedError:  # a model that embeds characters takes any numbers
        table, size = None, 128
    except AttributeError:  # a module of no library
        table = next((one for one in model.modules() if isinstance(one, nn.Embedding)), None)
        size = 128 if table is None else table.num_embeddings
    settings = {**vars(model.config), **vars(getattr(model.config, "text_config", None) or model.config)}
    special = {
        value for key, value in settings.items() if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    own = getattr(table, "padding_idx", None)  # some models count their positions from it
    special |= set() if own is None else {int(own)}
    plain = [token for token in range(size) if token not in special]
    return [plain[position * len(plain) // count % len(plain)] for position in range(count)]


def _changed(tokens: list[int], length: int, num_positions: int) -> tuple[Tensor, list[int]]:
    """A row of ``length`` tokens with copies that have the last of ``tokens`` at one position; and these positions."""
    positions = [1 + (step + 1) * (length - 1) // num_positions - 1 for step in range(num_positions)]
    positions = sorted({position for position in positions if position > 0})
    rows = torch.tensor(tokens[:length]).repeat(1 + len(positions), 1)
    for row, position in enumerate(positions, start=1):
        rows[row, position] = tokens[-1]
    return rows, positions
