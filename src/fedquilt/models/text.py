"""Preparing text for a model: rows of token numbers, and batches without needless padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.tasks import IGNORED
from fedquilt.data.prompts import Turns
from fedquilt.data.table import Columns, Table

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The special tokens of the byte tokenizer, numbered 0 to 3: padding, start, end, unknown."""

NUM_TOKENS = len(SPECIAL) + 256
"""The vocabulary size of the byte tokenizer."""


def byte_tokenizer(*, start_and_end: bool) -> Tokenizer:
    """A tokenizer that needs no files: one token per byte of UTF-8 text after four special ones (260 in all).

    ``start_and_end`` puts ``<s>`` and ``</s>`` around a sentence and gives the second of a pair the token type 1, as
    BERT does; otherwise only ``<s>`` precedes a text, as in LLaMA.
    """
    vocabulary = {
        token: number for number, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if start_and_end else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1" if start_and_end else "<s> $A $B:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return tokenizer


def classification_encoder(
    tokenizer: Any, max_length: int, num_embeddings: int | None = None, num_kinds: int = 0
) -> Callable[[Table], Columns]:
    """``encode(table)``: columns input_ids, attention_mask, token_type_ids (where the model has them) and labels.

    All but the labels are (rows, ``max_length``), truncated or padded on the right; a second sentence follows the
    first. Truncation keeps the special tokens and removes the end of the longer sentence first.

    Raises
    ------
    ConfigError
        if ``max_length`` leaves no room for text.
    DataError
        if the data holds images or no labels, a token number is not below ``num_embeddings``, or a token type is not
        below ``num_kinds`` (0: not checked).
    """

    def encode(table: Table) -> Columns:
        texts = _texts(table)
        if table.labels is None:
            raise DataError("the data has no labels, and a classifier needs them; name their column in data.label")
        _refuse_no_room(max_length, tokenizer.num_special_tokens_to_add(table.pairs is not None), table)
        rows = tokenizer(texts, table.pairs, padding="max_length", truncation=True, max_length=max_length)
        columns = {name: torch.tensor(values, dtype=torch.int32) for name, values in rows.items() if name in _INPUTS}
        _refuse_unknown(tokenizer, columns["input_ids"], num_embeddings)
        _refuse_kinds(columns, num_kinds)
        return columns | {"labels": table.labels.long()}

    return encode


def completion_encoder(
    tokenizer: Any, max_length: int, num_embeddings: int | None = None
) -> Callable[[Table], Columns]:
    """``encode(table)``: input_ids, attention_mask and labels, (rows, ``max_length``), for next-token training.

    A row is the prompt, the completion and the end token. Labels are the tokens themselves, and -100 on prompt and
    padding. Truncation removes the start of the prompt first, except for the special tokens at its start (or one
    token), then the end of the completion. Without completions every token of the text is a label, and truncation
    removes its end. A second text follows the first on a new line. A conversation is formatted by the tokenizer's chat
    template up to the assistant's answer, or as plain text if there is no template.

    Raises
    ------
    ConfigError
        if ``max_length`` leaves no room for text.
    DataError
        if the data holds images, the template rejects a conversation, or a token number is not below
        ``num_embeddings``; names the row.
    """

    def encode(table: Table) -> Columns:
        head = _head(tokenizer)
        _refuse_no_room(max_length, max(1, len(head)), table)
        rows = [_cut(prompt, answer, max_length, _shared(prompt, head)) for prompt, answer in _pieces(tokenizer, table)]
        shape = (len(rows), max_length)
        input_ids = torch.full(shape, tokenizer.pad_token_id, dtype=torch.int32)
        mask = torch.zeros(shape, dtype=torch.int32)
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        for row, (prompt, answer) in enumerate(rows):
            start, stop = len(prompt), len(prompt) + len(answer)
            input_ids[row, :stop] = torch.tensor(prompt + answer, dtype=torch.int32)
            mask[row, :stop] = 1
            labels[row, start:stop] = torch.tensor(answer)
        _refuse_unknown(tokenizer, input_ids, num_embeddings)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    return encode


def lost_tokens(tokenizer: Any, writes: bool) -> Callable[[Table, Columns], Tensor]:
    """``lost(table, columns)``: how many tokens truncation removed from each row, int64 (rows, 2).

    The first number counts tokens of the prompt, or of a text to classify; the second those of the completion and its
    end token, and is 0 for a classifier (``writes`` is False).
    """

    def lost(table: Table, columns: Columns) -> Tensor:
        found = torch.zeros(len(table), 2, dtype=torch.int64)
        full = columns["attention_mask"].bool().all(1).nonzero()[:, 0]  # only full rows can have been truncated
        if not len(full):
            return found
        rows, kept = table.rows(full), columns["attention_mask"][full].sum(1).long()
        if not writes:
            whole = tokenizer(_texts(rows), rows.pairs, verbose=False)["input_ids"]
            found[full, 0] = torch.tensor([len(ids) for ids in whole]) - kept
            return found
        labelled = (columns["labels"][full] != IGNORED).sum(1)
        sizes = torch.tensor([(len(prompt), len(answer)) for prompt, answer in _pieces(tokenizer, rows)])
        found[full] = sizes - torch.stack([kept - labelled, labelled], dim=1)
        return (
            found if table.targets is not None else found.flip(1)
        )  # without completions all tokens of a text are labels

    return lost


def _pieces(tokenizer: Any, table: Table) -> list[tuple[list[int], list[int]]]:
    """The tokens of each row's prompt and of its completion, before truncation."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if table.turns is not None and getattr(tokenizer, "chat_template", None):
        # the template writes the special tokens itself
        texts, special = _by_template(tokenizer, table.turns), False
    else:
        texts, special = _prompts(table), True
    prompts = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    if special:
        prompts = [_without_end(ids, end) for ids in prompts]
    if table.targets is None:
        return [([], ids + end) for ids in prompts]
    answers = tokenizer(list(table.targets), add_special_tokens=False, verbose=False)["input_ids"]
    return [(prompt, answer + end) for prompt, answer in zip(prompts, answers, strict=True)]


def _head(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    length = next((index for index, special in enumerate(found["special_tokens_mask"]) if not special), 0)
    return list(found["input_ids"][:length])


def _shared(ids: list[int], head: list[int]) -> int:
    """The number of first tokens that ``ids`` and ``head`` have in common."""
    same = [own == other for own, other in zip(ids, head, strict=False)]
    return same.index(False) if False in same else len(same)


def _refuse_no_room(max_length: int, num_special: int, table: Table) -> None:
    least = num_special + (2 if table.pairs is not None else 1)
    if max_length < least:
        raise ConfigError(
            f"model.max_length: {max_length} tokens are too few for these rows; with {num_special} special tokens a "
            f"row needs at least {least}"
        )


def _refuse_unknown(tokenizer: Any, input_ids: Tensor, num_embeddings: int | None) -> None:
    """Raise DataError if the model has no embedding for a token of these rows."""
    if num_embeddings is None or not input_ids.numel() or int(input_ids.max()) < num_embeddings:
        return
    wrong = (input_ids >= num_embeddings).nonzero()  # (found, 2)
    row, token = int(wrong[0, 0]), int(input_ids[tuple(wrong[0])])
    raise DataError(
        f"row {row} (counted from 0) holds '{tokenizer.convert_ids_to_tokens(token)}', number {token} of the "
        f"tokenizer, but the model has embeddings for {num_embeddings} tokens, 0 to {num_embeddings - 1}; that is so "
        f"in {len(wrong[:, 0].unique())} of {len(input_ids)} rows. Give the model more embeddings "
        f"(resize_token_embeddings({len(tokenizer)})) and save it, or use the tokenizer that it was trained with"
    )


def _refuse_kinds(columns: Columns, num_kinds: int) -> None:
    """Raise DataError if the model has no embedding for a token type of these rows; 0 kinds: no check."""
    kinds = columns.get("token_type_ids")
    if num_kinds and kinds is not None and kinds.numel() and int(kinds.max()) >= num_kinds:
        raise DataError(
            f"the tokenizer numbers the tokens of second texts {int(kinds.max())}, but the model has "
            f"embeddings for {num_kinds} token types (type_vocab_size); put both texts into one column, or choose "
            "another model"
        )


def prepare_text(columns: Columns) -> dict[str, Tensor]:
    """The model's inputs for these rows, int64, without labels and without columns that are padding in every row.

    Labels of a causal language model have one column per token; the caller cuts them to the width of ``input_ids``.
    Packed rows (``client.packing``) have position numbers, by which attention keeps their examples apart, in place of a
    mask.
    """
    width = max(1, int(columns["attention_mask"].sum(dim=1).max()))
    names = _PACKED if "position_ids" in columns else _INPUTS
    return {name: columns[name][:, :width].long() for name in names if name in columns}  # (rows, width)


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_PACKED = ("input_ids", "position_ids")


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """``decode(ids)``: the text of these tokens without special tokens, with unchanged spaces."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode


def vocabulary(tokenizer: Any) -> tuple[str, ...]:
    """Every token by its number, as the tokenizer writes it; the end token, which stands for no text, is empty."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    end = tokenizer.eos_token_id
    return tuple("" if number == end else token or "" for number, token in enumerate(tokens))


def _prompts(table: Table) -> list[str]:
    """The text of each row, followed by its second text on a new line, if there is one."""
    texts = _texts(table)
    if table.pairs is None:
        return texts
    return [text + ("" if text.endswith("\n") else "\n") + pair for text, pair in zip(texts, table.pairs, strict=True)]


def _texts(table: Table) -> list[str]:
    if not isinstance(table.inputs, list):
        raise DataError("the model reads text, but the data holds images; set model.task and data.source to one kind")
    return list(table.inputs)


def _by_template(tokenizer: Any, conversations: Sequence[Turns]) -> list[str]:
    texts = []
    for row, turns in enumerate(conversations):
        said = [{"role": role, "content": content} for role, content in turns]
        try:
            texts.append(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise anything
            roles = ", ".join(role for role, _ in turns)
            raise DataError(
                f"row {row}: the model's chat template does not take a conversation of {roles} ({error}); change the "
                "row, or set data.prompt to write it without the template"
            ) from error
    return texts


def _without_end(ids: list[int], end: list[int]) -> list[int]:
    return ids[:-1] if end and ids[-1:] == end else ids


def _cut(prompt: list[int], answer: list[int], max_length: int, fixed: int) -> tuple[list[int], list[int]]:
    """Truncate both to ``max_length`` tokens: first the prompt after its ``fixed`` tokens, then the answer's end."""
    excess = min(len(prompt) + len(answer) - max_length, len(prompt) - max(1, fixed))
    prompt = prompt[:fixed] + prompt[fixed + max(0, excess) :]
    return prompt, answer[: max_length - len(prompt)]
