"""Text made ready for a model: rows of token numbers, and batches without needless padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.data.posing import Turns
from fedquilt.data.table import Columns, Table

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The byte tokenizer's own tokens: padding, start, end, unknown; numbers 0 to 3."""

NUM_TOKENS = len(SPECIAL) + 256
"""How many tokens the byte tokenizer knows."""

IGNORED = -100
"""The label of a token that no loss is taken of."""


def byte_tokenizer(*, start_and_end: bool) -> Tokenizer:
    """A tokenizer that needs no download: one token per byte of UTF-8 text, behind the four special ones (260 in all).

    ``start_and_end`` puts ``<s>`` and ``</s>`` around a sentence, and numbers the second one of a pair 1, as BERT does;
    otherwise only ``<s>`` comes before it, as in LLaMA.
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


def classification_encoder(tokenizer: Any, max_length: int) -> Callable[[Table], Columns]:
    """``encode(table)``: columns input_ids, attention_mask, token_type_ids (where the model has them) and labels.

    All but the labels are (rows, ``max_length``), cut or padded on the right; a second sentence goes behind the first.
    """

    def encode(table: Table) -> Columns:
        texts = _texts(table)
        if table.labels is None:
            raise DataError("the data has no labels, and a classifier needs them; name their column in data.label")
        rows = tokenizer(texts, table.pairs, padding="max_length", truncation=True, max_length=max_length)
        columns = {name: torch.tensor(values, dtype=torch.int32) for name, values in rows.items() if name in _INPUTS}
        return columns | {"labels": table.labels.long()}

    return encode


def completion_encoder(tokenizer: Any, max_length: int) -> Callable[[Table], Columns]:
    """``encode(table)``: input_ids, attention_mask and labels, (rows, ``max_length``), for next-token training.

    A row is the prompt, the completion and the end token. Labels are the tokens themselves, and -100 on prompt and
    padding. Too long a row loses the start of its prompt first (one token of it stays), then the end of its completion.
    Without completions every token of the text is a label. A second text stands on the line below the first. A
    conversation is written by the tokenizer's chat template up to where the assistant speaks, or as plain text where it
    has none.

    Raises
    ------
    DataError
        if the data holds images, or the template does not take a conversation; names the row.
    """

    def encode(table: Table) -> Columns:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if table.turns is not None and getattr(tokenizer, "chat_template", None):
            # the template writes the special tokens itself
            prompts = tokenizer(_by_template(tokenizer, table.turns), add_special_tokens=False)["input_ids"]
        else:
            prompts = [_without_end(ids, end) for ids in tokenizer(_prompts(table))["input_ids"]]
        if table.targets is None:
            rows = [_cut([], ids + end, max_length) for ids in prompts]
        else:
            answers = tokenizer(list(table.targets), add_special_tokens=False)["input_ids"]
            rows = [_cut(prompt, answer + end, max_length) for prompt, answer in zip(prompts, answers, strict=True)]
        shape = (len(rows), max_length)
        input_ids = torch.full(shape, tokenizer.pad_token_id, dtype=torch.int32)
        mask = torch.zeros(shape, dtype=torch.int32)
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        for row, (prompt, answer) in enumerate(rows):
            start, stop = len(prompt), len(prompt) + len(answer)
            input_ids[row, :stop] = torch.tensor(prompt + answer, dtype=torch.int32)
            mask[row, :stop] = 1
            labels[row, start:stop] = torch.tensor(answer)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    return encode


def prepare_text(columns: Columns) -> dict[str, Tensor]:
    """The model's inputs for these rows, int64, without the columns in which every row is padding; no labels.

    Labels of a causal language model have one column per token: cut them to the width of ``input_ids``.
    """
    width = max(1, int(columns["attention_mask"].sum(dim=1).max()))
    return {name: columns[name][:, :width].long() for name in _INPUTS if name in columns}  # (rows, width)


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """``decode(ids)``: the text of these tokens without the special ones, spaces as they are."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode


def _prompts(table: Table) -> list[str]:
    """What a language model reads of each row: the text, and on the next line the second text, if there is one."""
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
        except Exception as error:  # a template raises what its author chose
            roles = ", ".join(role for role, _ in turns)
            raise DataError(
                f"row {row}: the model's chat template does not take a conversation of {roles} ({error}); change the "
                "row, or set data.prompt to write it without the template"
            ) from error
    return texts


def _without_end(ids: list[int], end: list[int]) -> list[int]:
    return ids[:-1] if end and ids[-1:] == end else ids


def _cut(prompt: list[int], answer: list[int], max_length: int) -> tuple[list[int], list[int]]:
    prompt = prompt[-max(1, max_length - len(answer)) :]
    return prompt, answer[: max_length - len(prompt)]
