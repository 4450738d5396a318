"""A test by trial whether a language model keeps examples apart that share a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedquilt.client.model_config import without_cache
from fedquilt.client.packing import packed
from fedquilt.core.errors import ModelError
from fedquilt.core.tasks import IGNORED
from fedquilt.data.table import Columns
from fedquilt.models.causality import ordinary_tokens
from fedquilt.models.hf_files import quiet
from fedquilt.models.text import prepare_text
from fedquilt.models.text_limits import described, most_moved

_WIDTH = 48  # tokens of a row in the trial


def refuse_mixing(model: Any, name: str, width: int) -> None:
    """Raise ModelError if the language model called ``name`` does not keep examples apart that share a row.

    Four examples in two rows of at most ``width`` tokens are compared with the same examples in rows of their own.

    Raises
    ------
    ModelError
        if the logits of an example depend on the others in its row, or if the trial fails.
    """
    width = min(width, _WIDTH)
    rows = _examples(model, [width - width // 4, width // 2, width // 3, width // 4], width)
    together = packed(rows)
    try:
        with torch.no_grad(), without_cache(model), quiet():
            alone: Tensor = model(**prepare_text(rows)).logits.float()
            beside: Tensor = model(**prepare_text(together)).logits.float()
    except Exception as error:  # a model may raise anything for position numbers that it does not expect
        raise _mixing(model, name, f"a trial ended in {described(error)}") from error
    numbers = together["labels"][:, : beside.shape[1]]
    known = numbers != IGNORED  # all but padding and the first token of each example
    expected = alone.flatten(0, 1)[numbers[known]]
    moved, most = float((beside[known] - expected).abs().max()), float(expected.abs().max())
    if not moved <= most_moved(model) * most:
        raise _mixing(
            model, name, f"others beside an example change its logits by {moved:.2g}, the largest is {most:.2g}"
        )


def _examples(model: Any, lengths: Sequence[int], width: int) -> Columns:
    """Rows with examples of these lengths; the labels number all tokens of all rows, cut to the longest length."""
    device, shape = next(model.parameters()).device, (len(lengths), width)
    places = torch.arange(width, device=device)
    tokens = torch.tensor(ordinary_tokens(model, len(lengths) * width), device=device).view(shape)
    numbers = torch.arange(len(lengths), device=device).unsqueeze(1) * max(lengths) + places
    mask = (places < torch.tensor(lengths, device=device).unsqueeze(1)).long()
    return {"input_ids": tokens, "attention_mask": mask, "labels": numbers}


def _mixing(model: Any, name: str, reason: str) -> ModelError:
    return ModelError(
        f"model '{name}': training.packing = true does not work with a {model.config.model_type} model, which does not "
        f"keep the examples of a row apart ({reason}); set it to false"
    )
