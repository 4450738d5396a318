"""Evaluation of a model on clients' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedquilt.adapters.lora.dora import unchanging
from fedquilt.client.generation import Answering, Asked, asked, right
from fedquilt.client.workbench import Batch, Workbench


def evaluation(
    bench: Workbench,
    columns: Batch,
    params: Mapping[str, Tensor] | None,
    *,
    batch_size: int = 256,
    answering: Answering | None = None,
) -> dict[str, float]:
    """Evaluate a model: ``loss`` and ``accuracy`` over all labels of the rows, and ``examples``, the number of rows.

    Parameters
    ----------
    bench, columns, params
        The workbench, the rows, and the model's tensors; None for those that it has.
    batch_size
        Rows of a forward pass.
    answering
        How answers are generated and compared: the accuracy is then the share of rows with a right answer. With None, a
        language model's accuracy is over its labelled tokens.
    """
    return evaluations(bench, [columns], params, batch_size=batch_size, answering=answering)[0]


def evaluations(
    bench: Workbench,
    parts: Sequence[Batch],
    params: Mapping[str, Tensor] | None,
    *,
    batch_size: int = 256,
    answering: Answering | None = None,
) -> list[dict[str, float]]:
    """Evaluate one model on the rows of several clients in one pass; the scores of each, as ``evaluation`` gives them.

    A batch may hold rows of several clients, and texts are in the order of their lengths, so that batches are full and
    little of them is padding. The sums are taken client by client.

    Parameters
    ----------
    bench
        The workbench.
    parts
        The rows of each client, of the same width.
    params
        The model's tensors; None for those that it has.
    batch_size, answering
        As for ``evaluation``.
    """
    if params is not None:
        bench.load(params)
    counts = torch.tensor([len(columns["labels"]) for columns in parts])
    owners = torch.repeat_interleave(torch.arange(len(parts)), counts)
    starts = counts.cumsum(0) - counts
    # by client: the sum of losses, the number of labels, and that of right labels or answers
    sums = torch.zeros(3, len(parts), dtype=torch.float64)
    unsure: list[Asked] = []
    askers: list[int] = []  # the clients whose rows these are
    with torch.no_grad(), unchanging(bench.adapters.values()):
        for rows in _order(parts).split(batch_size) if len(owners) else ():
            batch, whose = _picked(parts, rows, owners, starts)
            logits, labels = bench.forward(batch)
            found = [bench.scoring.loss(logits, labels), bench.scoring.labelled(labels)]
            if answering is None:
                found.append(bench.scoring.correct(logits, labels))
            else:
                todo = asked(bench, batch, logits, answering)
                found.append(torch.tensor([one is None for one in todo]))
                unsure += [one for one in todo if one is not None]
                askers += [int(client) for client, one in zip(whose, todo, strict=True) if one is not None]
            for total, values in zip(sums, found, strict=True):
                total.index_add_(0, whose, values.cpu().double())
        if answering is not None:  # all together, so that prompts of similar lengths share a batch
            for client, answer in zip(askers, right(bench, unsure, answering, batch_size), strict=True):
                sums[2, client] += answer
    losses, num_labels, hits = sums.tolist()
    num_rows = counts.tolist()
    num_answers = num_labels if answering is None else num_rows
    return [
        {"loss": loss / max(1.0, labels), "accuracy": hit / max(1.0, answers), "examples": float(rows)}
        for loss, labels, hit, answers, rows in zip(losses, num_labels, hits, num_answers, num_rows, strict=True)
    ]


def _order(parts: Sequence[Batch]) -> Tensor:
    """The numbers of all rows, those of the first client first; texts from the shortest to the longest."""
    masks = [columns["attention_mask"].sum(1) for columns in parts if "attention_mask" in columns]
    if masks:
        return torch.cat(masks).argsort(stable=True)
    return torch.arange(sum(len(columns["labels"]) for columns in parts))


def _picked(parts: Sequence[Batch], rows: Tensor, owners: Tensor, starts: Tensor) -> tuple[Batch, Tensor]:
    """These rows as one batch, client by client, and the client of each."""
    whose, order = owners[rows].sort(stable=True)
    rows = rows[order]
    chosen = {int(part): rows[whose == part] - starts[part] for part in whose.unique()}
    names = parts[next(iter(chosen))]
    return {name: torch.cat([parts[part][name][own] for part, own in chosen.items()]) for name in names}, whose
