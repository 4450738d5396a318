"""What a method needs of the adapters, what its clients send, and how its server merges: what it can be combined with.

``experiment.compatibility`` reads these traits, and nothing outside ``fedquilt.methods`` knows a method by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedquilt.aggregate.lowrank.rules import Rule


@dataclass(frozen=True)
class Traits:
    """The traits of a method. The defaults are those of federated averaging of any tensors, written with ``layered``.

    Attributes
    ----------
    needs : what the clients train: any ``tensors`` (every adapter kind), low-rank ``factors`` (LoRA alone), or a
        ``mixture`` of adapters.
    sends : what of a trained pair of factors a client sends: ``all`` of it, ``A`` or ``B`` alone, one of them
        ``alternating`` over rounds, or ``nothing``.
    trains : whether a client trains the tensors that it is ``sent``, or its ``own``, of which other ones travel.
    merge : whether the server combines tensors by the run file's rule of aggregation (``mean``, which
        ``federation.aggregate`` and ``federation.rule`` may change), or in its ``own`` way.
    rule : the low-rank rule that the method is, a value of ``aggregate.lowrank.rules``; None where it is none.
    across : whether it takes a federation of several architectures whole, because it shares something across them. Any
        other method runs in each architecture apart.
    alignment : its own rule for aligning updates: ``"none"`` if that is switched off, ``"auto"`` if it is on wherever
        all clients train the same tensors; None for a method that has none.
    drops_layers : whether a client runs a model of the layers that it trains alone.
    sends_scores : whether clients send numbers on their rows besides tensors, and the method needs them.
    stateless : whether clients remember nothing from one round to the next, as long as no head is theirs. Where this
        is not known to hold, no privacy is claimed from it.
    """

    needs: Literal["tensors", "factors", "mixture"] = "tensors"
    sends: Literal["all", "A", "B", "alternating", "nothing"] = "all"
    trains: Literal["sent", "own"] = "sent"
    merge: Literal["mean", "own"] = "mean"
    rule: Rule | None = None
    across: bool = False
    alignment: str | None = None
    drops_layers: bool = False
    sends_scores: bool = False
    stateless: bool = False


GivenTraits = Traits | Callable[[Mapping[str, Any]], Traits]
"""The traits of a method, or a function that gives them from all of its settings."""
