"""How good a language model is by the answers that it writes, not by the tokens that it would have liked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.tasks import IGNORED
from fedquilt.metrics.answers import is_right
from fedquilt.metrics.programs import right_programs


@dataclass(frozen=True)
class Answering:
    """How a model's answers are had and compared.

    ``kind`` is one of ``metrics.answers.KINDS``; ``decode`` gives the text of tokens; the model writes at most
    ``new_tokens`` of them. ``classes`` are the names that a label can have.
    """

    kind: str
    decode: Callable[[Sequence[int]], str]
    new_tokens: int = 64
    classes: tuple[str, ...] = ()


def right_rows(bench: Workbench, batch: Batch, logits: Tensor, answering: Answering) -> list[bool]:
    """Whether the model answers each row right when it completes the row's prompt, its likeliest token every time.

    ``logits`` are those of the whole rows. Where every token of the completion is the likeliest one there, the model
    would write the completion itself, so only the other rows are written.
    """
    golds = [row[row != IGNORED].tolist() for row in batch["labels"]]
    right = _surely_right(bench, batch, logits, golds, answering)
    unsure = [row for row, sure in enumerate(right) if not sure]
    if not unsure:
        return right
    prompts = [batch["input_ids"][row, : _start(batch["labels"][row])] for row in unsure]
    said = [answering.decode(ids) for ids in written(bench, prompts, answering.new_tokens)]
    wanted = [answering.decode(golds[row]) for row in unsure]
    if answering.kind == "program":
        found = right_programs(said, wanted)
    else:
        pairs = zip(said, wanted, strict=True)
        found = [is_right(answering.kind, mine, gold, answering.classes) for mine, gold in pairs]
    for row, is_so in zip(unsure, found, strict=True):
        right[row] = is_so
    return right


def written(bench: Workbench, prompts: Sequence[Tensor], new_tokens: int) -> list[list[int]]:
    """The tokens that the model puts behind each prompt, at most ``new_tokens``, up to and with its end token.

    Where a model has a longest row, fewer are written behind a prompt that leaves room for fewer; only one that leaves
    none gives way with its start. What is written does not depend on the other prompts: those of unlike lengths share a
    batch only if the model heeds its padding (``bench.pads_left``).
    """
    longest = _longest(bench)
    batches: dict[tuple[int, int], list[int]] = {}
    own = list(prompts)
    for place, prompt in enumerate(prompts):
        room = _room(len(prompt), new_tokens, longest)
        if longest is not None and len(prompt) >= longest:
            own[place] = prompt[-(longest - room) :]
        together = bench.pads_left and room == new_tokens
        batches.setdefault((room, 0 if together else len(own[place])), []).append(place)
    found: list[list[int]] = [[] for _ in own]
    for (room, _), places in batches.items():
        for place, ids in zip(places, _written(bench, [own[place] for place in places], room), strict=True):
            found[place] = ids
    return found


def _longest(bench: Workbench) -> int | None:
    """The most tokens of a row: as was found by trying, or as the config says, where some say -1 for no limit."""
    model: Any = bench.model
    stated = getattr(model.config, "max_position_embeddings", None) if bench.longest is None else bench.longest
    return stated if stated is None or stated > 1 else None


def _room(prompt: int, new_tokens: int, longest: int | None) -> int:
    """How many tokens are written behind a prompt of so many."""
    if longest is None:
        return new_tokens
    return min(new_tokens, longest - 1 if prompt >= longest else longest - prompt)


def _written(bench: Workbench, prompts: Sequence[Tensor], new_tokens: int) -> list[list[int]]:
    """What is written behind prompts in one batch, padded on the left."""
    model: Any = bench.model
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.generation_config.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    with torch.no_grad(), bench.autocast():
        whole = model.generate(
            input_ids=ids.to(bench.device), attention_mask=mask.to(bench.device), max_new_tokens=new_tokens
        )
    ends = _ends(model)
    return [_up_to(row, ends) for row in whole[:, width:].tolist()]


def _surely_right(
    bench: Workbench, batch: Batch, logits: Tensor, golds: Sequence[list[int]], answering: Answering
) -> list[bool]:
    """Whether each row's completion is, token by token, what the model would write."""
    labels = batch["labels"][:, : logits.shape[1]].to(logits.device)
    same = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    likeliest = same.all(1) & (labels[:, 0] == IGNORED)
    ends, longest = _ends(bench.model), _longest(bench)
    # a completion that was cut has no end, and what is written has a longest length
    whole = [
        bool(gold) and gold[-1] in ends and len(gold) <= _room(_start(row), answering.new_tokens, longest)
        for gold, row in zip(golds, batch["labels"], strict=True)
    ]
    return [sure and fits for sure, fits in zip(likeliest.tolist(), whole, strict=True)]


def _start(labels: Tensor) -> int:
    """The place of the first label."""
    return int((labels != IGNORED).int().argmax())


def _ends(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _up_to(ids: list[int], ends: frozenset[int]) -> list[int]:
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]
