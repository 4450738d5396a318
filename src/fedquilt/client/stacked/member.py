"""One client among those that train side by side."""

from __future__ import annotations

from fedquilt.client.fit import batches
from fedquilt.client.job import Job
from fedquilt.client.packing import packed
from fedquilt.core.errors import DivergedError, TrainingError
from fedquilt.core.training import num_steps
from fedquilt.core.types import Params
from fedquilt.core.worker import Fitted

Outcome = Fitted | TrainingError


class Member:
    """One client among those that train side by side: its rows, its steps, and what came of them."""

    def __init__(self, number: int, job: Job) -> None:
        self.number, self.job = number, job
        self.columns = packed(job.columns) if job.training.packing else job.columns
        rows = len(self.columns["labels"])
        self.of_steps = num_steps(rows, job.training)
        self.drawn = batches(rows, job.training, job.rng.child("batches"))
        self.wanted = frozenset[str]().union(*(phase.names for phase in job.phases))
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0
        self.failure: TrainingError | None = None

    def fail(self, what: str, value: float, step: int) -> None:
        """Note a number that is not finite; the first one counts."""
        self.failure = self.failure or DivergedError(f"{what} is {value} at step {step}")

    def fitted(self, own: Params, steps: int) -> Outcome:
        """The result, with ``own`` the client's tensors."""
        if self.failure is not None:
            return self.failure
        params = {name: tensor for name, tensor in own.items() if name in self.wanted}
        metrics = {"loss": self.loss_sum / max(1, self.seen), "accuracy": self.correct / max(1, self.seen)}
        return Fitted(params, len(self.job.columns["labels"]), {**metrics, "steps": float(steps)})
