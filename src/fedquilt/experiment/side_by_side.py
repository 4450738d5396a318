"""How many clients a run trains side by side, and a trial whether that is faster than one after another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.client.job import Job, alone
from fedquilt.client.stacked.kinds import alike, refusal
from fedquilt.client.stacked.together import fitted_together
from fedquilt.client.stacked.trial import verdict_on
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RunError, TrainingError
from fedquilt.core.profiling import span
from fedquilt.core.types import ClientId, Order
from fedquilt.core.worker import Phase
from fedquilt.experiment.build import Experiment

MOST = 10
"""The largest number that ``auto`` chooses: twice as many hardly gain more, and hold twice the activations."""

_WORTH = 1.1
"""How many times as fast training side by side must be in the trial: a smaller gain may be none in the run."""

_STEPS, _REPEATS = 2, 3
_PATIENCE = 5.0
"""Seconds after which no trial is repeated."""

_SHARE = 0.5
"""The share of the free memory that activations may take."""


class Choice(NamedTuple):
    """The number of clients side by side, 1 for one after another, and what the user should know of it."""

    width: int
    said: str = ""


def refuse_elsewhere(config: Config, engine: str) -> None:
    """Raise ConfigError for settings of how the embedded engine does its clients' work, if another engine runs."""
    if (number := config.engine.processes) > 1:
        if engine != "embedded":
            raise ConfigError(
                f"engine.processes = {number}: with --engine {engine} clients are in other processes already; leave "
                "it out, or run without --engine"
            )
        if not hasattr(os, "fork"):
            raise ConfigError(f"engine.processes = {number}: {sys.platform} cannot fork processes; leave it out")
    if config.engine.batch_clients != "off" and engine != "embedded":
        raise ConfigError(
            f"engine.batch_clients = {config.engine.batch_clients!r}: with --engine {engine} the clients are in other "
            "processes, each alone; leave it out, or run without --engine"
        )
    if config.engine.prefix_cache != "off" and engine != "embedded":
        raise ConfigError(
            f"engine.prefix_cache = {config.engine.prefix_cache!r}: with --engine {engine} the clients are in other "
            "processes; leave it out, or run without --engine"
        )


def with_processes(folder: Path, config: Config, number: int, threads: int) -> Config:
    """The config of the run in this folder, with another number of processes for the rest of its rounds.

    Raises
    ------
    RunError
        if the run began with more than one thread, on which its sums depend, and a process has one; or if it trains
        clients side by side, and another number of processes would group them otherwise.
    """
    if number != config.engine.processes and config.engine.batch_clients != "off":
        raise RunError(
            f"{folder}: began with engine.processes = {config.engine.processes}, in each of which clients are trained "
            "side by side; go on with the same number, or start a new run in another folder"
        )
    if number > 1 and threads > 1:
        raise RunError(
            f"{folder}: began with {threads} threads, and each of engine.processes = {number} has one; leave "
            "engine.processes out, or start a new run in another folder"
        )
    return config.model_copy(update={"engine": replace(config.engine, processes=number)})


def chosen(experiment: Experiment) -> Choice:
    """The number of the run file, or for ``auto`` what the trial tells."""
    asked = experiment.config.engine.batch_clients
    if asked == "off":
        return Choice(1)
    if asked != "auto":
        return Choice(asked)
    with span("trial"):
        return _tried(experiment)


def _tried(experiment: Experiment) -> Choice:
    """Train a few clients of the commonest architecture for two steps, in turn and side by side, alternately."""
    if any(exchange.partial for exchange in experiment.method.exchanges):
        return Choice(1, "clients are trained one after another, as blocks of their models are left out")
    jobs = _jobs(experiment)
    if not jobs:
        return Choice(1, "clients are trained one after another, as no two of one architecture can be side by side")
    if why := refusal(jobs[0]) or verdict_on(jobs[0]).refusal:
        return Choice(1, f"clients are trained one after another, as {why}")
    try:
        group = [jobs[number] for number in max(alike(jobs), key=len)]
        return _measured(group, experiment.config.engine.processes)
    except TrainingError as error:  # as in the run, where it costs no more than a client's update
        return Choice(1, f"clients are trained one after another, as the trial of both ways failed: {error}")


def _measured(jobs: Sequence[Job], processes: int) -> Choice:
    """What training both ways tells, if so many processes share the memory."""
    width = min(len(jobs), _affordable(jobs[0]) // processes)
    if width < 2:
        return Choice(1, "clients are trained one after another, as their activations would not fit side by side")
    jobs = jobs[:width]
    gain = _gain(jobs)
    if gain < _WORTH:
        return Choice(1, f"clients are trained one after another: side by side is {gain:.2f} times as fast")
    return Choice(width, f"{width} clients are trained side by side, {gain:.1f} times as fast as one after another")


def _jobs(experiment: Experiment) -> list[Job]:
    """Two steps of as many clients of the commonest architecture as a cohort may have, each with all of its tensors."""
    alike: dict[str, list[ClientId]] = {}
    for profile in experiment.federation.profiles:
        if profile.num_examples and profile.id in experiment.clients:
            alike.setdefault(profile.architecture, []).append(profile.id)
    of_a_process = -(-experiment.config.cohort // experiment.config.engine.processes)
    members = max(alike.values(), key=len, default=[])[: min(MOST, of_a_process)]
    return [_job(experiment.clients[id], experiment) for id in members] if len(members) > 1 else []


def _job(client: Client, experiment: Experiment) -> Job:
    names = frozenset(client.bench.parameters) - client.frozen
    return Job(
        client.bench,
        client.train,
        client.params(Order({}), None),
        (Phase(names),),
        replace(client.training, steps=_STEPS, epochs=None),
        client.training.learning_rate,
        experiment.rng.child("side by side", client.id),
    )


def _gain(jobs: Sequence[Job]) -> float:
    """How many times as fast the jobs are side by side; the first time does not count, unless it took long."""
    began, gains = time.perf_counter(), list[float]()
    while len(gains) <= _REPEATS and (not gains or time.perf_counter() - began < _PATIENCE):
        gains.append(_seconds(_in_turn, jobs) / _seconds(fitted_together, jobs))
    return median(gains[1:] or gains)


def _in_turn(jobs: Sequence[Job]) -> None:
    for job in jobs:
        alone(job)


def _seconds(train: Callable[[Sequence[Job]], object], jobs: Sequence[Job]) -> float:
    """Processor seconds, or on a device wall seconds: others use the processors too."""
    clock = time.process_time if jobs[0].bench.device.type == "cpu" else time.perf_counter
    began = clock()
    train(jobs)
    return clock() - began


def _affordable(job: Job) -> int:
    """The number of clients whose activations fit into half of the memory that is free."""
    free = _free_bytes(job.bench.device)
    return MOST if free is None else int(free * _SHARE / max(1, _kept_bytes(job)))


def _kept_bytes(job: Job) -> int:
    """The bytes that autograd keeps in one client's steps, at most, besides the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in job.bench.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alone(replace(job, training=replace(job.training, steps=1, accumulation=1)))
    return sum(kept.values())


def _free_bytes(device: torch.device) -> int | None:
    """The bytes that are free on a device, or in the machine's memory; None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _meminfo(Path("/proc/meminfo")).get("MemAvailable")


def _meminfo(path: Path) -> Mapping[str, int]:
    if not path.exists():  # not on Linux
        return {}
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {key.rstrip(":"): 1024 * int(number) for key, number, *_ in lines}
