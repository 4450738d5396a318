"""How one machine carries out its clients' work: the section [engine] of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

Processes = Annotated[int, Ge(1), Le(256)]
Width = Annotated[int, Ge(2), Le(1000)]


@dataclass(frozen=True)
class Engine:
    """How the clients of a machine are trained: one after another, side by side, or by several processes."""

    batch_clients: Literal["off", "auto"] | Width = "off"
    """Number of clients of one architecture that are trained side by side, as one batch over their common base. Results
    equal those of training one after another, ``off``, up to the rounding of sums, and depend on the number. ``auto``
    tries at the start of the run which of the two is faster, with up to 10 clients and as many as memory allows, and a
    resumed run keeps the choice. The record names clients that were trained alone all the same, with the reason."""
    processes: Processes = 1
    """Number of processes that share the clients of a round, each with one thread; results are bit-identical to those
    of one process with ``threads = 1``. Where processes can be forked, and for models on the CPU."""
