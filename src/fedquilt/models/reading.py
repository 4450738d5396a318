"""How a model reads and generates text: its tokenizer together with the limits of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fedquilt.core.errors import ModelError
from fedquilt.core.tasks import TASKS
from fedquilt.data.table import Columns, Table
from fedquilt.data.tabular import Preprocessor
from fedquilt.models import text, text_limits
from fedquilt.models.causality import refuse_seeing_ahead
from fedquilt.models.layers import find_blocks
from fedquilt.models.packing_trial import refuse_mixing
from fedquilt.models.words import word_finder


@dataclass(frozen=True)
class Reading:
    """How a table is turned into the inputs of a model.

    Attributes
    ----------
    encode
        Turns a table into columns.
    prepare
        Turns a batch of columns into the model's keyword arguments.
    width
        The most tokens of a row; None for images.
    lost
        Counts the tokens that truncation removed from each row; see ``text.lost_tokens``.
    longest
        The most tokens of a prompt together with its generated completion; None if no limit is known.
    pads_left
        Whether completions of prompts of different lengths can be generated in one batch.
    try_packing
        Raises ModelError if a language model mixes examples that share a row; None where nothing can be tried.
    words
        Finds the tokens at which words end, see ``words.word_finder``; None for images.
    vocabulary
        Gives every token, see ``text.vocabulary``; empty for images.
    features
        How columns of numbers and categories become features, for a model of tables.
    """

    encode: Callable[[Table], Columns]
    prepare: Callable[[Columns], dict[str, Tensor]]
    width: int | None = None
    lost: Callable[[Table, Columns], Tensor] | None = None
    longest: int | None = None
    pads_left: bool = False
    try_packing: Callable[[], None] | None = None
    words: Callable[[Sequence[str], Columns, int], Tensor] | None = None
    vocabulary: Callable[[], tuple[str, ...]] = tuple
    features: Preprocessor | None = None


ENCODERS: Mapping[str, Callable[[Any, int, int | None, int], Callable[[Table], Columns]]] = {
    "class": text.classification_encoder,
    "completion": lambda tokenizer, width, size, _num_kinds: text.completion_encoder(tokenizer, width, size),
}
"""The encoder of texts for each kind of label, as a function of a tokenizer, the most tokens of a row, and the numbers
of tokens and of token types for which the model has embeddings (0 if it has no token types)."""


def unread(table: Table) -> Columns:
    """Raise ModelError: the encoder of a text model that was loaded without a tokenizer."""
    raise ModelError("a model on the meta device has no tokenizer; load it with its weights to encode text")


def text_reading(
    model: Any, tried: Any, tokenizer: Any, name: str, task: str, max_length: int, new_tokens: int
) -> Reading:
    """The reading of a text model, checked by trial forward passes.

    Parameters
    ----------
    model
        The model; it may have no weights.
    tried
        The model for the trials: the same, or a smaller stand-in; None for no trials.
    tokenizer
        The model's tokenizer.
    name
        The model's name, for messages.
    task
        The name of a task that reads text.
    max_length
        The most tokens of a row; fewer are used if the model or its tokenizer has a lower limit.
    new_tokens
        The most tokens that are generated after a prompt; 0 if nothing is generated.

    Raises
    ------
    ModelError
        if a language model attends to later tokens, padding changes the logits, the padding token has no embedding, or
        a short row raises an error.
    """
    text_limits.refuse_padding_token(model, tokenizer, name)
    stated = stated_positions(model.config)
    width = min(max_length, tokenizer.model_max_length, stated or max_length)
    longest, blocks = stated, None if tried is None else find_blocks(tried)
    if blocks is not None:
        reach = min(width + new_tokens, stated or width + new_tokens)
        found = text_limits.longest_row(tried, blocks, name, reach)
        longest = found if found < reach else stated
        width = min(width, found)
    writes, size = TASKS[task].writes, text_limits.num_embeddings(model)
    num_kinds = getattr(model.config, "type_vocab_size", 0) or 0
    encode = ENCODERS[TASKS[task].labels](tokenizer, width, size, num_kinds)
    if tried is not None:
        if writes:
            refuse_seeing_ahead(tried, name, blocks, width)
        text_limits.refuse_moved_by_padding(tried, encode, text.prepare_text, name)
    pads_left = tried is not None and writes and new_tokens > 0 and text_limits.takes_left_padding(tried, name)
    try_packing = partial(refuse_mixing, tried, name, width) if tried is not None and writes else None
    lost = text.lost_tokens(tokenizer, writes)
    words, vocabulary = word_finder(tokenizer, name), partial(text.vocabulary, tokenizer)
    return Reading(encode, text.prepare_text, width, lost, longest, pads_left, try_packing, words, vocabulary)


def stated_positions(config: Any) -> int | None:
    """The number of positions in a model's config, or None for no limit."""
    for part in (config, config.get_text_config()):
        number = getattr(part, "max_position_embeddings", None)
        if isinstance(number, int) and number > 0:
            return number
    return None


def greedy(own: Any, tokenizer: Any) -> Any:
    """A generation config for greedy decoding up to an end token of the model (``own``) or tokenizer."""
    listed = [own.eos_token_id] if isinstance(own.eos_token_id, int) else own.eos_token_id or []
    ends = sorted({*listed, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
    return type(own)(do_sample=False, use_cache=True, eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id)
