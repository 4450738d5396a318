"""Words of a text among the tokens of a model, so that models with different tokenizers can observe the same words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedquilt.core.errors import DataError, ModelError
from fedquilt.data.table import Columns

_WORD = re.compile(r"\S+")


def ends_of_words(text: str, count: int) -> list[int]:
    """Where each of the first ``count`` words ends, as a number of characters; fewer for a text of fewer words.

    Words are separated by white space.
    """
    return [found.end() for found, _ in zip(_WORD.finditer(text), range(count), strict=False)]


def word_finder(tokenizer: Any, name: str) -> Callable[[Sequence[str], Columns, int], Tensor]:
    """``find(texts, columns, count)``: the tokens at which the first ``count`` words of each text end.

    Every text has at least so many words.

    The result is int64 (texts, ``count``), positions in the rows of ``columns``, which hold the texts as the model
    reads them. A word ends at the last token that begins before the word's end, so a token that spans several words
    stands for each.

    Raises
    ------
    ModelError
        if the tokenizer cannot say which characters its tokens are of.
    DataError
        if a row was truncated before the last of the words.
    """

    def find(texts: Sequence[str], columns: Columns, count: int) -> Tensor:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"model '{name}': its tokenizer does not say which characters a token is of, which axes.rows = 'words' "
                "needs; set axes.rows = 'inputs'"
            )
        read = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
        found = torch.zeros(len(texts), count, dtype=torch.int64)
        for row, (text, ids, spans) in enumerate(zip(texts, read["input_ids"], read["offset_mapping"], strict=True)):
            places = [_last_before(spans, end) for end in ends_of_words(text, count)]
            kept = columns["input_ids"][row]
            # after truncation another token, such as the end, stands where the word's token was
            if places[-1] >= len(kept) or kept[places].tolist() != [ids[place] for place in places]:
                raise DataError(
                    f"axes.words = {count}: model '{name}' reads at most {len(kept)} tokens, and {places[-1] + 1} are "
                    f"needed for so many words of the text {text[:60]!r}; set axes.words lower or model.max_length "
                    "higher"
                )
            found[row] = torch.tensor(places)
        return found

    return find


def _last_before(spans: Sequence[tuple[int, int]], end: int) -> int:
    """The last token that begins before a character; tokens of no character, such as special ones, are passed over."""
    return max((place for place, (start, stop) in enumerate(spans) if start < min(stop, end)), default=0)
