"""Trackers of experiments that follow a run: the section [track] of a run file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fedquilt.core.settings import Text

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


@dataclass(frozen=True)
class Track:
    """Trackers that are sent the numbers of each round, besides the run's own record; each needs its package.

    They are sent scores, losses, bytes, seconds and the privacy spent, never data, weights or predictions. A tracker
    that fails is given up with a warning; the run goes on, and its result does not depend on trackers.
    """

    to: Tracker | tuple[Tracker, ...] = ()
    """One of ``tensorboard``, ``mlflow``, ``wandb`` and ``trackio``, or a list of them; none if left out."""
    project: Text = "fedquilt"
    """The project or experiment that the run belongs to there; its name is that of its folder."""
    folder: Text = "track"
    """Folder of what trackers keep on this machine. MLFLOW_TRACKING_URI and TRACKIO_DIR go before it, and wandb is
    offline unless a key of it is known."""
    clients: bool = False
    """Whether scores of each client and group are sent too, by their names."""

    def __post_init__(self) -> None:
        """Refuse settings of no tracker."""
        if self.trackers:
            return
        for field in dataclasses.fields(self):
            key, value = field.name, getattr(self, field.name)
            if key != "to" and value != field.default:
                raise ValueError(
                    f"{key} = {value!r}: is of trackers, and track.to names none; set it or leave {key} out"
                )

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        """The names of all trackers, each once."""
        return tuple(dict.fromkeys((self.to,) if isinstance(self.to, str) else self.to))
