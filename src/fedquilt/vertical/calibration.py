"""What of a joint model is found on aligned rows without gradients, once the steps of a round are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedquilt.core.types import ClientId, Params
from fedquilt.core.vertical import ALIGNED, Vertical
from fedquilt.data.table import take
from fedquilt.vertical.active import ActiveState, Received, knowledge
from fedquilt.vertical.joint import Joint, Views
from fedquilt.vertical.party import embedded, party_of
from fedquilt.vertical.stacking import Trial, best_offset
from fedquilt.vertical.together import views_of

STEPS = 20
"""Offsets that are tried: so many steps from 0 to the largest score."""


def calibrated(
    vertical: Vertical,
    joint: Joint,
    state: ActiveState,
    received: Mapping[ClientId, Received],
    counts: Tensor,
    holds: Tensor,
) -> Params:
    """What the joint model finds on the aligned rows of the round, see ``Joint.calibrate``; empty for most methods.

    Empty too, so that what was found before stays, while a party is missing that alone has learned some class: the
    class would pass for one that nobody has learned.

    Parameters
    ----------
    vertical, joint, state
        The federation, the joint model, and the state after the steps of the round.
    received
        What each passive party that replied has sent.
    counts
        The active party's own labelled unaligned rows by class, (C,).
    holds
        Whether each party holds each aligned row, (rows, K), boolean.
    """
    party, rows = party_of(vertical.active), state["rows"].flatten()
    if joint.calibrate is None or party.bench.device.type == "meta":
        return {}
    parts = {id: one.embeddings.flatten(0, 1) for id, one in received.items()}
    own = embedded(party, state["own"], take(party.splits[ALIGNED], rows))
    views = views_of(vertical, state, parts, own, counts).without(~holds[rows])
    learned = knowledge(vertical, state["told"], counts).any(0)
    if bool((learned & ~views.knows.any(0)).any()):
        return {}
    with torch.no_grad():
        return joint.calibrate(state["joint"], views, vertical.labels[rows])


def offset_of(scores: Callable[[Views], Tensor], views: Views, labels: Tensor, largest: float) -> float:
    """The offset for classes that nobody has learned, by leaving out each class of the aligned rows in turn.

    The class that is left out is taken from what the parties know, so that it has the score of a class that nobody has
    learned; no other such class competes with it. The model has learned from these rows, also from those of the class,
    so that the offset is rather too small than too large. 0 if each class has been learned by some party.

    Parameters
    ----------
    scores
        Gives the scores of rows, (n, C), without an offset.
    views, labels
        All parties' views of aligned rows, and their labels, (n,).
    largest
        The largest score.
    """
    if bool(views.knows.any(0).all()):
        return 0.0
    trials = [_without(scores, views, labels, number) for number in labels.unique().tolist()]
    return best_offset(trials, _offsets(largest))


def _without(scores: Callable[[Views], Tensor], views: Views, labels: Tensor, number: int) -> Trial:
    """The trial in which the class of this number plays one that nobody has learned."""
    out = torch.arange(views.knows.shape[1], device=views.knows.device) == number
    others = ~views.knows.any(0) & ~out
    found = scores(views._replace(knows=views.knows & ~out, seen=views.seen & ~out))
    return Trial(found.masked_fill(others, float("-inf")), labels, views.seen & ~out)


def _offsets(largest: float) -> Sequence[float]:
    return [largest * step / STEPS for step in range(STEPS + 1)]
