"""A test by trial whether a model keeps the rows of clients apart that pass through it as one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedquilt.client.job import Job
from fedquilt.client.stacked.dropout import Extent, OwnDropout, default_generator
from fedquilt.client.stacked.rows import joined
from fedquilt.client.stacked.stack import stacked
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.rng import Rng

_FRACTION = 0.05
"""The largest error of the logits, as a fraction of the distance between two clients' logits."""


class Verdict(NamedTuple):
    """Why no clients can be trained side by side on a workbench, empty if they can; and whether dropout is active."""

    refusal: str
    drops: bool


_VERDICTS: WeakKeyDictionary[Workbench, Verdict] = WeakKeyDictionary()


def verdict_on(job: Job) -> Verdict:
    """The verdict on a job's workbench, which is tried once.

    Two clients with unlike tensors pass through the model alone and side by side. A model that mixes rows, or passes
    only some of them through an adapter, gives other logits. One that draws random numbers besides dropout is refused.
    """
    if job.bench not in _VERDICTS:
        _VERDICTS[job.bench] = _tried(job)
    return _VERDICTS[job.bench]


def _tried(job: Job) -> Verdict:
    bench, few = job.bench, {name: column[:2] for name, column in job.columns.items()}
    rows, rng = torch.arange(len(few["labels"])), Rng(0).child("trial")
    two = [_unlike(job, rng.child("client", number)) for number in range(2)]
    with torch.no_grad(), rng.scope():
        apart = [_logits(bench, one, few) for one in two]
        with stacked(bench, two):
            batch = joined([few, few], [rows, rows])
            together = bench.forward(batch)[0]
            dropout = OwnDropout(bench.device, [rng.child("dropout", number) for number in range(2)])
            dropout.extents = [Extent(len(rows), 0)] * 2
            source = default_generator(bench.device)
            before = source.get_state()
            with bench.training(()), dropout:
                bench.forward(batch)
            drawn = not torch.equal(before, source.get_state())
    error, distance = (together - torch.cat(apart)).abs().max(), (apart[0] - apart[1]).abs().max()
    if not error <= _FRACTION * distance:
        return Verdict("the model does not keep the rows of several clients apart", dropout.drew)
    return Verdict("the model draws random numbers besides dropout" if drawn else "", dropout.drew)


def _unlike(job: Job, rng: Rng) -> Job:
    """The job with other tensors."""
    own = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=rng.child(name).torch()).to(tensor)
        if name in job.bench.parameters
        else tensor
        for name, tensor in job.params.items()
    }
    return replace(job, params=own, extra=None)


def _logits(bench: Workbench, job: Job, rows: Batch) -> Tensor:
    bench.load(job.params)
    return bench.forward(rows)[0]
