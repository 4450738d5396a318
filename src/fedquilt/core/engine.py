"""How one machine carries out its clients' work: the section [engine] of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

Processes = Annotated[int, Ge(1), Le(256)]
Width = Annotated[int, Ge(2), Le(1000)]
Megabytes = Annotated[int, Ge(1), Le(1_000_000)]

AUTO_MEGABYTES = 1024
"""The megabytes that ``prefix_cache = "auto"`` stands for: a fixed number, on which no result depends by chance."""


@dataclass(frozen=True)
class Engine:
    """How the clients of a machine are trained: one after another, side by side, or by several processes."""

    batch_clients: Literal["off", "auto"] | Width = "off"
    """Number of clients of one architecture that are trained side by side, as one batch over their common base. Results
    equal those of training one after another, ``off``, up to the rounding of sums, and depend on the number. ``auto``
    tries at the start of the run which of the two is faster, with up to 10 clients of a process and as many as memory
    allows, and a resumed run keeps the choice. The record names clients that were trained alone all the same, with the
    reason."""
    processes: Processes = 1
    """Number of processes that share the clients of a round, each with one thread; results are bit-identical to those
    of one process with ``threads = 1``. With ``batch_clients`` the clients of each process are trained side by side,
    and results depend on this number too. Where processes can be forked, and for models on the CPU."""
    prefix_cache: Literal["off", "auto"] | Megabytes = "off"
    """The most megabytes in which a client that trains several epochs keeps, for the time of its training, what the
    blocks below those that it trains make of its rows, so that they run in the first epoch only; ``auto`` is 1024.
    Nothing is kept of a model that draws random numbers there, as dropout does, nor where methods train in phases.
    Results equal those of ``off`` up to the rounding of sums."""

    @property
    def prefix_bytes(self) -> int:
        """``prefix_cache`` in bytes."""
        if self.prefix_cache == "off":
            return 0
        return 2**20 * (AUTO_MEGABYTES if self.prefix_cache == "auto" else self.prefix_cache)
