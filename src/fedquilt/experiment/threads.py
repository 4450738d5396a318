"""The number of CPU threads of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedquilt.experiment.build import Experiment

SMALL = 1_000_000
"""Weights of a model below which more than one thread hardly helps.

Measured with steps of LoRA on encoders (16 rows), 16 idle processors: 16 threads make a model of 0.03 million weights
slower and one of 0.7 million 1.4 times faster, for 12 times the processor time; from 2 million on, 4 threads are twice
as fast. If other programs use the processors, threads that wait for each other cost far more than they gain.
"""

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def share_threads(workers: int) -> None:
    """Use this process's share of the processors, one of ``workers``, unless the environment sets the number."""
    if not _set_outside():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _set_outside() -> bool:
    return any(name in os.environ for name in _VARIABLES)


@contextmanager
def restored_threads() -> Iterator[None]:
    """Set torch's number of threads at the end to what it is now."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_threads(experiment: Experiment) -> str | None:
    """Use one thread if the models are small, on the CPU, and nobody has chosen; returns what to tell the user.

    The choice does not depend on the load of the machine, because results depend on the number of threads.
    """
    own, weights = torch.get_num_threads(), num_weights(experiment)
    on_cpu = experiment.groups[0].bench.device.type == "cpu"
    if experiment.config.threads is not None or _set_outside() or not on_cpu or own == 1 or weights >= SMALL:
        return None
    torch.set_num_threads(1)
    return f"1 thread, as more hardly help a model of {weights:,} weights; threads = {own} in the run file changes it"


def num_weights(experiment: Experiment) -> int:
    """The number of weights of the largest model."""
    return max(sum(weight.numel() for weight in group.loaded.model.parameters()) for group in experiment.models)
