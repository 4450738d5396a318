"""Reasoning paths of a causal language model: as rows of tokens, and their joint log-probabilities.

A path is what follows a question: its rationale, its answer and the end token. Models with different tokenizers read
the same text, each in its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.task import negative_log_likelihood
from fedquilt.client.texts import log_probabilities
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.tasks import IGNORED


class Likelihood(NamedTuple):
    """Joint log-probabilities of paths, and their numbers of tokens, each (paths,)."""

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-probability per token, (paths,); 0 for a path without tokens."""
        return self.total / self.tokens.clamp(min=1)

    def at(self, positions: Tensor) -> Likelihood:
        """Those of these paths."""
        return Likelihood(self.total[positions], self.tokens[positions])


def path_columns(
    prompts: Sequence[Sequence[int]], paths: Sequence[Sequence[int]], *, pad: int, longest: int | None = None
) -> Batch:
    """Columns input_ids, attention_mask and labels, (rows, tokens), padded on the right, of prompts and paths.

    Labels are the path's tokens, and -100 on prompt and padding. If a row has more than ``longest`` tokens, the start
    of its prompt is removed first, except for its last token, then the end of its path.

    Raises
    ------
    ValueError
        if a prompt has no tokens: nothing would predict the path's first one.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    rows = [_cut(list(prompt), list(path), longest) for prompt, path in zip(prompts, paths, strict=True)]
    width = max((len(prompt) + len(path) for prompt, path in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.int32)
    mask, labels = torch.zeros_like(ids), torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for row, (prompt, path) in enumerate(rows):
        stop = len(prompt) + len(path)
        ids[row, :stop] = torch.tensor(prompt + path, dtype=torch.int32)
        mask[row, :stop] = 1
        labels[row, len(prompt) : stop] = torch.tensor(path, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def likelihood(logits: Tensor, labels: Tensor) -> Likelihood:
    """``l(y | q) = sum_t log p(y_t | q, y_<t)`` of each row's path, with gradients.

    ``logits`` is (rows, tokens, vocabulary) and ``labels`` (rows, tokens), -100 where the path is not.

    Paper: lada, joint-likelihood
    """
    own = labels[:, 1:]
    return Likelihood(-negative_log_likelihood(logits[:, :-1], own), own.ne(IGNORED).sum(1))


def likelihoods(bench: Workbench, columns: Batch, batch_size: int = 32) -> Likelihood:
    """The joint log-probabilities of the paths in these columns, on the CPU, without gradients."""
    return Likelihood(*log_probabilities(bench, columns, batch_size))


class Reading(NamedTuple):
    """What a model makes of paths.

    Attributes
    ----------
    likelihood
        Their joint log-probabilities.
    path, prompt
        Means over the tokens of path and prompt of what the model's last block gives, (paths, width).
    """

    likelihood: Likelihood
    path: Tensor
    prompt: Tensor


def readings(bench: Workbench, columns: Batch, batch_size: int = 32) -> Reading:
    """What the model makes of the paths in these columns, on the CPU, without gradients.

    Rows are read in batches of similar lengths; the result is in the order of the rows. The model is in eval mode, as
    it always is outside ``Workbench.training``; inside, ``Workbench.asked`` sets it.
    """
    count = len(columns["labels"])
    order = columns["attention_mask"].sum(1).argsort(stable=True)
    found: list[Reading] = []
    with torch.no_grad():
        for rows in order.split(batch_size) if count else ():
            found.append(_read(bench, {name: column[rows] for name, column in columns.items()}))
    if not found:
        empty = torch.zeros(0)
        return Reading(Likelihood(empty, empty.long()), torch.zeros(0, 0), torch.zeros(0, 0))
    back = order.argsort()
    whole = Likelihood(*(torch.cat(parts) for parts in zip(*(each.likelihood for each in found), strict=True)))
    path, prompt = torch.cat([each.path for each in found]), torch.cat([each.prompt for each in found])
    return Reading(whole.at(back), path[back], prompt[back])


def _read(bench: Workbench, batch: Batch) -> Reading:
    """What the model makes of one batch."""
    kept: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    last = list(bench.model.get_submodule(bench.blocks.path).children())[-1]
    hook = last.register_forward_hook(keep)
    try:
        logits, labels = bench.forward(batch)
    finally:
        hook.remove()
    own = likelihood(logits, labels)
    states, on_path = kept[0].float(), labels != IGNORED
    on_prompt = batch["attention_mask"][:, : labels.shape[1]].to(labels.device).bool() & ~on_path
    scored = Likelihood(own.total.cpu(), own.tokens.cpu())
    return Reading(scored, _pooled(states, on_path), _pooled(states, on_prompt))


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of states (rows, tokens, width) over the tokens of the mask, (rows, width), on the CPU."""
    weights = mask.to(states).unsqueeze(-1)
    return ((states * weights).sum(1) / weights.sum(1).clamp(min=1)).cpu()


def _cut(prompt: list[int], path: list[int], longest: int | None) -> tuple[list[int], list[int]]:
    excess = 0 if longest is None else max(0, len(prompt) + len(path) - longest)
    prompt = prompt[min(excess, len(prompt) - 1) :]
    return prompt, path if longest is None else path[: max(0, longest - len(prompt))]
