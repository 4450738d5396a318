"""Training of a model of two parts, each as if the other were not there, and the weight of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedquilt.adapters.common.inject import CommonAdapters
from fedquilt.adapters.common.module import EVEN, PARTS, WEIGHT
from fedquilt.adapters.sites import is_shared
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.types import Params
from fedquilt.core.worker import Fitted, Phase

WEIGHTS = (EVEN, 0.75, 0.25, 1.0, 0.0)
"""Weights of the common part that are tried; of equally good ones the first counts."""


def trained_apart(
    bench: Workbench,
    held_out: Batch | None,
    params: Params,
    phases: Sequence[Phase],
    train: Callable[[list[Phase]], Fitted],
) -> Fitted:
    """What ``train`` makes of the phases for each part in turn, together, and the weight that suits both.

    Every part makes all steps of the round, with the same batches, in those phases that train something of it. Metrics
    are the means over the parts that were trained, and the sum of their steps. The weight is the one with
    the lowest loss on the rows held out for validation; without such rows it stays.

    Parameters
    ----------
    bench : the workbench with the model.
    held_out : the client's rows for validation.
    params : the tensors before training.
    phases : the phases of one cycle; they may train tensors of both parts.
    train : ``train(phases)`` trains the model, of which one part alone is there.
    """
    assert bench.public is not None
    found = []
    for part in PARTS:
        with bench.public.adapters.alone(part):
            if own := _of(part, phases):
                found.append(train(own))
    if not found:
        return train([])
    metrics = {name: sum(one.metrics[name] for one in found) / len(found) for name in found[0].metrics}
    steps = sum(one.metrics["steps"] for one in found)
    fitted = {name: tensor for one in found for name, tensor in one.params.items()}
    if any(WEIGHT in phase.names for phase in phases):
        fitted[WEIGHT] = params[WEIGHT]
        if held_out is not None and len(held_out["labels"]) and bench.device.type != "meta":
            bench.load({**params, **fitted})
            fitted[WEIGHT] = torch.full_like(params[WEIGHT], chosen(bench, bench.public.adapters, held_out))
    return Fitted(fitted, found[0].num_examples, {**metrics, "steps": steps})


def chosen(bench: Workbench, adapters: CommonAdapters, rows: Batch) -> float:
    """The weight of ``WEIGHTS`` with the lowest loss on these rows, by the tensors in the model.

    Of few rows the loss says more than the number of right ones.
    """
    answers: Mapping[str, list[Tensor]] = {part: [] for part in PARTS}
    with torch.no_grad():
        for first in range(0, len(rows["labels"]), BATCH):
            batch = {name: column[first : first + BATCH] for name, column in rows.items()}
            for part in PARTS:
                with adapters.alone(part):
                    logits, labels = bench.forward(batch)
                answers[part].append(logits.float().cpu())
    common, private = (torch.cat(answers[part]) for part in PARTS)
    labels = rows["labels"].to(common.device)
    lost = {each: float(bench.scoring.loss(torch.lerp(private, common, each), labels).sum()) for each in WEIGHTS}
    return min(WEIGHTS, key=lost.__getitem__)


BATCH = 256
"""Rows of a forward pass."""


def _of(part: str, phases: Sequence[Phase]) -> list[Phase]:
    """The phases with the tensors of this part alone, without those that have none."""
    common = part == "common"
    own = (
        replace(each, names=frozenset(n for n in each.names if is_shared(n) == common) - {WEIGHT}) for each in phases
    )
    return [each for each in own if each.names]
