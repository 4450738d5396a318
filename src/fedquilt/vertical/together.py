"""How the active party predicts rows from all parties' embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch
from fedquilt.core.types import ClientId, Params
from fedquilt.core.vertical import TEST, Vertical
from fedquilt.vertical.active import ActiveState, knowledge, seen_classes
from fedquilt.vertical.joint import Joint, Views, stacked_parties
from fedquilt.vertical.party import embedded, party_of
from fedquilt.vertical.prediction import mean_by_class, prediction_scores
from fedquilt.vertical.prototypes import mean_cosines
from fedquilt.vertical.telling import MOST_CLASSES

ALIKE = "prototype_cosines"
"""The name of the table of how alike the parties' class prototypes are."""


def predicted(
    vertical: Vertical,
    joint: Joint,
    state: ActiveState,
    received: Mapping[ClientId, Tensor],
    counts: Tensor,
    holds: Tensor,
    *,
    alike: bool = False,
) -> ActiveState:
    """The state with the scores of the test rows, with all parties that replied and with each of them missing.

    Parameters
    ----------
    vertical, joint, state
        The federation, the joint model, and the state.
    received
        The unit embeddings of the test rows by each passive party that replied, (n, m).
    counts
        The active party's own labelled unaligned rows by class, (C,).
    holds
        Whether each party holds each test row, (rows, K), boolean.
    alike
        Whether to tell how alike the parties' prototypes of classes are.
    """
    party = party_of(vertical.active)
    if party.bench.device.type == "meta":
        return state
    views = views_of(vertical, state, received, embedded(party, state["own"], party.splits[TEST]), counts)
    views, tensors = views.without(~holds), joint_of(state)
    labels, seen = vertical.test_labels, seen_classes(vertical)
    with torch.no_grad():
        scores = prediction_scores(joint.scores(tensors, views), labels, seen)
        tables: dict[str, Any] = {}
        for id in sorted(received):
            hidden = torch.zeros_like(views.present)
            hidden[:, id] = True
            knows = views.knows.clone()
            knows[id] = False
            less = joint.scores(tensors, views.without(hidden)._replace(knows=knows))
            tables[f"without {vertical.parties[id]}"] = prediction_scores(less, labels, seen)["accuracy"]
        if joint.weights is not None:
            means = mean_by_class(joint.weights(tensors, views), labels, len(vertical.classes))
            tables["gate"] = {name: means[:, place].tolist() for place, name in enumerate(vertical.parties)}
        if alike and len(vertical.classes) <= MOST_CLASSES:
            cosines = mean_cosines(views.prototypes, views.knows)
            tables[ALIKE] = dict(zip(vertical.classes, cosines.tolist(), strict=True))
    made = {**state, "predicted": {"scores": scores, **tables}}
    return cast(ActiveState, made)


def joint_of(state: ActiveState) -> Params:
    """The tensors that the joint model predicts with: those that learn, and what was found without gradients."""
    return {**state["joint"], **state.get("calibration", {})}


def views_of(
    vertical: Vertical, state: ActiveState, received: Mapping[ClientId, Tensor], own: Tensor, counts: Tensor
) -> Views:
    """All parties' views of rows that are predicted; a passive party that sent no embeddings is missing.

    Parameters
    ----------
    vertical, state
        The federation and the state.
    received, own
        The unit embeddings of the passive parties that replied, and of the active one, (n, m).
    counts
        The active party's own labelled unaligned rows by class, (C,).
    """
    passive = range(len(vertical.parties) - 1)
    there = torch.tensor([*(id in received and str(id) in state["told"] for id in passive), True])
    mine = state["own"]["prototypes"]
    told = [state["told"][str(id)]["prototypes"] if there[id] else None for id in passive]
    embeddings = stacked_parties([*(received[id] if there[id] else None for id in passive), own], own)
    knows = knowledge(vertical, state["told"], counts) & there.unsqueeze(1)
    prototypes = stacked_parties([*told, mine], mine)
    return Views(embeddings, prototypes, there.expand(len(own), -1), knows, seen_classes(vertical))


def logits_of(
    vertical: Vertical,
    joint: Joint,
    state: ActiveState,
    received: Mapping[ClientId, Tensor],
    counts: Tensor,
    holds: Tensor,
    rows: Batch,
) -> Tensor:
    """The joint logits of new rows, (n, C).

    Parameters
    ----------
    vertical, joint, state, received, counts, holds
        As for ``predicted``, of the new rows.
    rows
        The rows as the active party sees them.
    """
    own = embedded(party_of(vertical.active), state["own"], rows)
    views = views_of(vertical, state, received, own, counts).without(~holds)
    with torch.no_grad():
        return joint.scores(joint_of(state), views)
