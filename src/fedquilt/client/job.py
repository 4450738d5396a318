"""One client's local training as a value, which can be carried out alone or beside that of other clients."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedquilt.client.fit import alternate
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training
from fedquilt.core.types import Params
from fedquilt.core.worker import Extra, Fitted, Phase


@dataclass(frozen=True)
class Job:
    """The arguments of ``fit.alternate`` for one client in one exchange.

    Attributes
    ----------
    bench, columns, params, phases
        The workbench, the client's rows, the tensors to start from, and the phases of one cycle.
    training, learning_rate, rng
        How to train, the learning rate of this round, and the random stream.
    blocks, extra
        The only transformer blocks that are part of the model, and tensors from which the adapters' cores are made.
    runs_model
        Whether a penalty of the phases runs the model.
    """

    bench: Workbench
    columns: Batch
    params: Params
    phases: tuple[Phase, ...]
    training: Training
    learning_rate: float
    rng: Rng
    blocks: Collection[int] | None = None
    extra: Extra | None = None
    runs_model: bool = False


Fitting = Callable[[Job], Fitted]
"""Carries out one client's local training; it may wait for that of others."""


def alone(job: Job) -> Fitted:
    """The result of ``fit.alternate``: this client's training, and no other's at the same time."""
    return alternate(
        job.bench,
        job.columns,
        job.params,
        job.phases,
        job.training,
        job.learning_rate,
        job.rng,
        blocks=job.blocks,
        extra=job.extra,
    )
