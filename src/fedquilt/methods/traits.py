"""The traits of a method, which say what it can be combined with.

``experiment.compatibility`` reads these traits, and nothing outside ``fedquilt.methods`` knows a method by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, GRADIENTS, PROTOTYPES

if TYPE_CHECKING:
    from fedquilt.core.federation import Rule


@dataclass(frozen=True)
class Traits:
    """The traits of a method. The defaults are those of federated averaging of any tensors, written with ``layered``.

    Attributes
    ----------
    needs : the kind of trained tensors: any ``tensors`` (every adapter kind), low-rank ``factors`` (only LoRA), a
        ``mixture`` of adapters or other branches that all models have, adapters in common ``coordinates``, or adapters
        ``anchored`` at the smallest model.
    sends : the part of a trained pair of factors that a client sends: ``all``, ``A``, ``B``, one of them
        ``alternating`` over rounds, or ``nothing``.
    trains : whether a client trains the tensors that it is ``sent``, or its ``own``, while other tensors travel.
    merge : whether the server combines tensors by the run file's aggregation rule (``mean``, which
        ``federation.aggregate`` and ``federation.rule`` may replace), or in its ``own`` way.
    rule : the low-rank rule of the method, a value of ``aggregate.lowrank.rules``, or None.
    across : whether it shares tensors across architectures and is given the whole federation. Any other method runs
        separately in each architecture.
    alignment : its own rule for aligning updates: ``"none"`` if that is switched off, ``"auto"`` if it is used wherever
        all clients train the same tensors; None for a method without alignment.
    drops_layers : whether a client's model consists of only the layers that it trains.
    sends_scores : whether the method needs numbers that clients compute from their rows, besides tensors.
    stateless : whether clients keep nothing from one round to the next, unless their heads are local. If this is not
        known, the privacy accounting does not rely on it.
    slots : whether layers with the same function share tensors by slots of depth. Their first factors then have the
        same axes, in every model with modules of that width.
    needs_server : whether it needs a server that owns a model and data ([server]). Such a method is ``across``: there
        is one server for all architectures.
    server_texts : whether it can do with a server that only writes texts, which is an endpoint and no model, for some
        of its settings; it refuses the others itself.
    vertical : whether its clients hold other columns of the same rows. Such a method is ``across``.
    complete : whether it needs all columns and labels in one place, as a bound that no federation reaches; only for
        ``vertical`` methods.
    discloses : the kinds of what leaves a party, see ``core.disclosure``; only for ``vertical`` methods.
    """

    needs: Literal["tensors", "factors", "mixture", "coordinates", "anchored"] = "tensors"
    sends: Literal["all", "A", "B", "alternating", "nothing"] = "all"
    trains: Literal["sent", "own"] = "sent"
    merge: Literal["mean", "own"] = "mean"
    rule: Rule | None = None
    across: bool = False
    alignment: str | None = None
    drops_layers: bool = False
    sends_scores: bool = False
    stateless: bool = False
    slots: bool = False
    needs_server: bool = False
    server_texts: bool = False
    vertical: bool = False
    complete: bool = False
    discloses: tuple[str, ...] = (EMBEDDINGS, GRADIENTS, PROTOTYPES, COUNTS)

    def __post_init__(self) -> None:
        """Refuse a method that would train the one server of all architectures separately in each."""
        if self.needs_server and not self.across:
            raise ValueError("needs_server = True needs across = True: all architectures have one server")
        if self.vertical and not self.across:
            raise ValueError("vertical = True needs across = True: all parties have one active party")


GivenTraits = Traits | Callable[[Mapping[str, Any]], Traits]
"""The traits of a method, or a function that gives them from all of its settings."""
