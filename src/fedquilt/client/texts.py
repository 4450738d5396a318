"""Texts given by a method, in place of a client's own rows: encoding, generation and log-probabilities.

On the meta device (planning) models have no tokenizer and no values: nothing is generated, and log-probabilities are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.generation import Sampling, written
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.errors import TrainingError
from fedquilt.core.tasks import IGNORED
from fedquilt.data.prompts import Turns, rendered
from fedquilt.data.table import Table


class Language(NamedTuple):
    """How a language model reads and writes.

    Attributes
    ----------
    encode
        Turns a table into columns.
    decode
        Turns tokens into text, without special tokens.
    vocabulary
        Gives every token as the tokenizer writes it, and the end token, which stands for no text, as an empty one.
    chat
        Whether a prompt that a method gives is the user's turn of a conversation.
    """

    encode: Callable[[Table], Batch]
    decode: Callable[[Sequence[int]], str]
    vocabulary: Callable[[], tuple[str, ...]]
    chat: bool = False


class Lent(NamedTuple):
    """A loaded language model.

    Attributes
    ----------
    bench
        The workbench, with the tensors loaded.
    columns
        ``columns(prompts, completions)`` gives the columns of these texts, see ``text_columns``.
    language
        How the model reads and writes; None on the meta device.
    batch_size
        The largest number of rows of a forward pass that trains nothing.
    """

    bench: Workbench
    columns: Callable[[Sequence[str], Sequence[str]], Batch]
    language: Language | None
    batch_size: int

    @property
    def planned(self) -> bool:
        """Whether the model has shapes only, so that it reads nothing."""
        return self.bench.device.type == "meta"


def text_columns(language: Language | None, prompts: Sequence[str], completions: Sequence[str]) -> Batch:
    """Columns input_ids, attention_mask and labels of these prompts with their completions.

    Raises
    ------
    TrainingError
        if the model is no language model.
    """
    known = _known(language)
    turns: list[Turns] | None = [(("user", prompt),) for prompt in prompts] if known.chat else None
    texts = list(prompts) if turns is None else [rendered(own) for own in turns]  # for a model without a template
    return known.encode(Table("text", texts, None, (), targets=list(completions), turns=turns))


def prompts_of(language: Language | None, columns: Batch, rows: Iterable[int]) -> list[str]:
    """The prompts of these rows, as text.

    Raises
    ------
    TrainingError
        if the model is no language model.
    """
    decode = _known(language).decode
    inside = columns["attention_mask"].bool() & (columns["labels"] == IGNORED)
    return [decode(columns["input_ids"][row][inside[row]].tolist()) for row in rows]


def _known(language: Language | None) -> Language:
    if language is None:
        raise TrainingError("the model is no language model, so it reads and writes no texts; set task = 'causal-lm'")
    return language


def completed(
    bench: Workbench,
    language: Language | None,
    params: Mapping[str, Tensor],
    prompts: Sequence[str],
    new_tokens: int,
    batch_size: int,
    *,
    sampling: Sampling | None = None,
) -> list[str]:
    """The model's completion of each prompt, without the end token.

    Parameters
    ----------
    bench, language, params
        The workbench, how its model reads and writes, and the model's tensors.
    prompts
        The texts to complete.
    new_tokens, batch_size
        The largest number of tokens to generate, and of prompts in a batch.
    sampling
        How tokens are drawn; None for greedy decoding.
    """
    if bench.device.type == "meta" or not prompts:
        return [""] * len(prompts)
    columns = text_columns(language, prompts, [""] * len(prompts))
    bench.load(params)
    return completions(bench, language, columns, new_tokens, batch_size, sampling=sampling)


def completions(
    bench: Workbench,
    language: Language | None,
    columns: Batch,
    new_tokens: int,
    batch_size: int,
    *,
    sampling: Sampling | None = None,
) -> list[str]:
    """The completion of each row's prompt by the model that is loaded, without the end token.

    Parameters
    ----------
    bench, language
        The workbench, and how its model reads and writes.
    columns
        The rows; what they hold behind the prompt is not read.
    new_tokens, batch_size
        The largest number of tokens to generate, and of prompts in a batch.
    sampling
        How tokens are drawn; None for greedy decoding.
    """
    decode = _known(language).decode
    inside = columns["attention_mask"].bool() & (columns["labels"] == IGNORED)
    rows = [ids[own] for ids, own in zip(columns["input_ids"], inside, strict=True)]
    return [decode(ids) for ids in written(bench, rows, new_tokens, batch_size, sampling=sampling)]


def log_probabilities(bench: Workbench, columns: Batch, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """``log p(completion | prompt)`` of each row, float32, and the completion's tokens, int64, both (rows,).

    Rows are read in batches of similar lengths, by the model that is loaded.
    """
    order = columns["attention_mask"].sum(1).argsort(stable=True)
    found = torch.zeros(len(order))
    with torch.no_grad():
        for rows in order.split(batch_size) if len(order) else ():
            logits, labels = bench.forward({name: column[rows] for name, column in columns.items()})
            found[rows] = -bench.scoring.loss(logits, labels).cpu()
    return found, (columns["labels"][:, 1:] != IGNORED).sum(1)
