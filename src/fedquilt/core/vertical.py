"""What a method is given of a vertical federation: the active party, which is the server's process, and its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.types import Layout, Params
from fedquilt.core.worker import Worker

ALIGNED, TEST = "aligned", "test"
"""The names of a party's rows that all parties hold: those that are learned together, and those that are predicted.

Both stand in one order that is the same in all parties. A party's training rows are those that it alone holds."""


@dataclass(frozen=True)
class Vertical:
    """A vertical federation as its active party sees it. Its other parties are the clients.

    Attributes
    ----------
    active
        The active party's worker, with its own columns; on the site of another party it has shapes only.
    layout, initial
        The trainable tensors of its encoder, and ``initial(rng)``, which makes those that training starts from.
    classes
        The names of all classes.
    width
        Length of an embedding: every encoder has so many outputs.
    parties
        The names of the clients by their numbers, and the active party's behind them.
    labels, test_labels
        The labels of the aligned rows and of those that are predicted, int64 (rows,), known to the server alone.
    due
        ``due(round)``: whether the test rows are predicted after this round.
    halves
        Where parties have files of their own: ``halves(count)`` gives the places of the common rows that are learned,
        and of those that are predicted. A worker's aligned rows are then all of its file's, and so are ``labels``, of
        the active party's; which of them are common is in the state and in the parties' memories. None where rows were
        dealt.
    """

    active: Worker
    layout: Layout
    initial: Callable[[Rng], Params]
    classes: tuple[str, ...]
    width: int
    parties: tuple[str, ...]
    labels: Tensor
    test_labels: Tensor
    due: Callable[[int], bool]
    halves: Callable[[int], tuple[Tensor, Tensor]] | None = None
