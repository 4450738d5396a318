"""How a model reads and writes text: its tokenizer and its own limits, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedquilt.core.errors import ModelError
from fedquilt.data.table import Columns, Table
from fedquilt.models import text, text_limits
from fedquilt.models.causality import refuse_seeing_ahead
from fedquilt.models.layers import find_blocks


@dataclass(frozen=True)
class Reading:
    """What becomes of a table on its way into a model.

    ``encode`` turns a Table into columns, ``prepare`` a batch of these into the model's keyword arguments. A row has at
    most ``width`` tokens, None for images; ``lost`` tells how many each row lost, as ``text.lost_tokens``. A prompt and
    what is written behind it have at most ``longest`` tokens together, None where no bound is known. ``pads_left`` says
    whether prompts of unlike lengths can be written in one batch.
    """

    encode: Callable[[Table], Columns]
    prepare: Callable[[Columns], dict[str, Tensor]]
    width: int | None = None
    lost: Callable[[Table, Columns], Tensor] | None = None
    longest: int | None = None
    pads_left: bool = False


def unread(table: Table) -> Columns:
    """What encodes a table where there is no tokenizer."""
    raise ModelError("a model on the meta device has no tokenizer; load it with its weights to encode text")


def text_reading(
    model: Any, tried: Any, tokenizer: Any, name: str, task: str, max_length: int, new_tokens: int
) -> Reading:
    """The reading of the model called ``name``, and all that can be wrong with it, found by trying.

    ``model`` may have no weights; ``tried`` is the same, or a smaller one in its place, and None if there is nothing to
    try. A row has at most ``max_length`` tokens, and fewer where the model has fewer positions or its
    tokenizer says so. ``new_tokens`` are written behind a prompt, 0 if none ever are.

    Raises
    ------
    ModelError
        if a language model sees the tokens to come, padding changes what the model says, the padding token has no
        embedding, or a short row ends in an error.
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
    writes, size = task == "causal-lm", text_limits.num_embeddings(model)
    if writes:
        encode = text.completion_encoder(tokenizer, width, size)
    else:
        encode = text.classification_encoder(tokenizer, width, size, getattr(model.config, "type_vocab_size", 0) or 0)
    if tried is not None:
        if writes:
            refuse_seeing_ahead(tried, name, blocks, width)
        text_limits.refuse_moved_by_padding(tried, encode, text.prepare_text, name)
    pads_left = tried is not None and writes and new_tokens > 0 and text_limits.takes_left_padding(tried, name)
    return Reading(encode, text.prepare_text, width, text.lost_tokens(tokenizer, writes), longest, pads_left)


def stated_positions(config: Any) -> int | None:
    """The positions that a model's config speaks of, or None for no limit."""
    for part in (config, config.get_text_config()):
        number = getattr(part, "max_position_embeddings", None)
        if isinstance(number, int) and number > 0:
            return number
    return None


def greedy(own: Any, tokenizer: Any) -> Any:
    """How a model writes: its likeliest token every time, whatever its files advise, up to an end token of either's."""
    listed = [own.eos_token_id] if isinstance(own.eos_token_id, int) else own.eos_token_id or []
    ends = sorted({*listed, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
    return type(own)(do_sample=False, use_cache=True, eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id)
