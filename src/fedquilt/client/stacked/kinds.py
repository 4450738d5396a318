"""Which clients can be trained side by side, and why a client cannot."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import nn

from fedquilt.adapters.lora.dora import DoraLinear
from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.mixture.module import MixtureLinear
from fedquilt.adapters.sites import is_shared
from fedquilt.client.job import Job
from fedquilt.client.workbench import Workbench
from fedquilt.core.factors import SHIFT


def refusal(job: Job) -> str:
    """Why this client is trained alone, whatever the others do; empty if it need not be."""
    bench, training = job.bench, job.training
    named = {name for phase in job.phases for name in phase.names}
    if bench.device.type == "meta" or not len(job.columns["labels"]):
        return "it has no rows"
    if bench.public is not None:
        return "its adapters are in common coordinates"
    if job.blocks is not None:
        return "blocks of its model are left out"
    if job.runs_model:
        return "a term of its loss runs the model"
    if training.gradient_checkpointing:
        return "training.gradient_checkpointing = true"
    if named & bench.layout.buffers:
        return "it trains running statistics"
    if (odd := _unstackable(bench)) is not None:
        return f"'{odd}' cannot be stacked"
    return ""


def _unstackable(bench: Workbench) -> str | None:
    """The first parameter whose module cannot have a stack of clients' tensors in place of it."""
    for name in bench.parameters:
        module = bench.model.get_submodule(name.rpartition(".")[0])
        adapter = type(module) in (LoraLinear, DoraLinear, MixtureLinear) or is_shared(name)
        head = type(module) is nn.Linear and bench.layout.depth[name] is None
        if not (adapter or head):
            return name
    return None


def kind_of(job: Job) -> Hashable:
    """What clients must have in common to be trained side by side.

    They may differ in their rows, in the number of their steps, in the tensors that they train, and in the ranks of
    their adapters.
    """
    phases = tuple(
        (phase.steps, phase.rate, tuple(sorted(phase.rates.items())), phase.agreement, phase.temperature)
        for phase in job.phases
    )
    extra = None if job.extra is None else tuple((name, t.shape) for name, t in sorted(job.extra.tensors.items()))
    return id(job.bench), job.training, job.learning_rate, phases, extra, frozenset(job.columns)


def alike(jobs: Sequence[Job]) -> list[list[int]]:
    """The numbers of the jobs that can be carried out side by side, group by group, in the order of the first."""
    groups: list[list[int]] = []
    for number, job in enumerate(jobs):
        for group in groups:
            first = jobs[group[0]]
            if kind_of(job) == kind_of(first) and _same_base(job, first):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _same_base(one: Job, other: Job) -> bool:
    """Whether the same changes have been merged into the bases of both."""
    own, others = ({name: t for name, t in job.params.items() if name.endswith(f".{SHIFT}")} for job in (one, other))
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
