"""The active party: what it keeps, how it learns from all parties' embeddings, and how it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.training import learning_rate_at
from fedquilt.core.types import ClientId, Params
from fedquilt.core.vertical import ALIGNED, Vertical
from fedquilt.data.table import take
from fedquilt.vertical.joint import Joint, Views, stacked_parties
from fedquilt.vertical.optimiser import Moments, Optimiser
from fedquilt.vertical.party import Learning, PartyState, begun, learning, party_of
from fedquilt.vertical.prior import histogram
from fedquilt.vertical.relay import Relay
from fedquilt.vertical.semantic import Semantic
from fedquilt.vertical.telling import Told


class ActiveState(TypedDict):
    """What the active party keeps: the state of a vertical method.

    Attributes
    ----------
    own
        Of its own encoder and prototypes.
    joint, moments
        The tensors of the joint model, and what its optimiser remembers.
    told
        What each passive party told last, by its number.
    back
        The gradients to send to each passive party of this round, by its number: ``embeddings``, ``prototypes``.
    rows
        The numbers of the aligned rows of this round, (minibatches, n).
    predicted
        The scores of the last prediction, and tables of it by name.
    seed, round
        The seed of its draws, and the number of rounds that it has finished.
    relay
        What to tell parties of the others' embeddings; absent before the first round and in methods without.
    calibration
        What the joint model found on aligned rows without gradients, see ``Joint.calibrate``; absent likewise.
    kept
        The share of each class that the selection of each party kept in the last round, by its name; absent likewise.
    """

    own: PartyState
    joint: Params
    moments: Moments
    told: dict[str, Told]
    back: dict[str, Params]
    rows: Tensor
    predicted: dict[str, Any]
    seed: int
    round: int
    relay: NotRequired[Relay]
    calibration: NotRequired[Params]
    kept: NotRequired[Params]


class Received(NamedTuple):
    """A passive party's part of the minibatches: unit embeddings, (minibatches, n, m), and what it told with them."""

    embeddings: Tensor
    told: Told


def first_state(vertical: Vertical, joint: Joint, rng: Rng, semantic: Semantic | None = None) -> ActiveState:
    """The active party's state before the first round; ``semantic`` as for ``begun``."""
    classes, width = len(vertical.classes), vertical.width
    party, own = party_of(vertical.active), rng.child("active")
    state = begun(party, {}, (classes, width), own, semantic)
    state["params"] = vertical.initial(own.child("model"))
    return ActiveState(
        own=state,
        joint=joint.init(len(vertical.parties), classes, width, own.child("joint")),
        moments={},
        told={},
        back={},
        rows=torch.zeros(0, 0, dtype=torch.long),
        predicted={},
        seed=own.integer(),
        round=0,
    )


def seen_classes(vertical: Vertical) -> Tensor:
    """Whether the aligned rows have each class, (C,), boolean."""
    return torch.bincount(vertical.labels, minlength=len(vertical.classes)) > 0


def aligned_prior(vertical: Vertical) -> Tensor:
    """The share of each class among the aligned rows, (C,)."""
    return histogram(vertical.labels, len(vertical.classes), 0.0)


def joined(
    vertical: Vertical,
    joint: Joint,
    state: ActiveState,
    received: Mapping[ClientId, Received],
    counts: Tensor,
    holds: Tensor,
    dropout: float,
) -> ActiveState:
    """The state after one step for each minibatch, with the gradients that passive parties are owed.

    The active party's encoder, its prototypes and the joint model take a step; the embeddings and prototypes that were
    received are leaves of the graph.

    Parameters
    ----------
    vertical, joint, state
        The federation, the joint model, and the state before.
    received
        What each passive party that replied has sent.
    counts
        The active party's own labelled unaligned rows by class, (C,).
    holds
        Whether each party holds each aligned row, (rows, K), boolean.
    dropout
        How often a passive party is hidden from the joint model in a row, in [0, 1).
    """
    party, number = party_of(vertical.active), state["round"]
    rng = Rng(state["seed"]).child("round", number)
    if party.bench.device.type == "meta":
        owed = {str(id): _as_received(one) for id, one in received.items()}
        return cast(ActiveState, {**state, "back": owed})
    device = party.bench.device
    passive = range(len(vertical.parties) - 1)
    parts = {id: _leaf(one.embeddings, device) for id, one in received.items()}
    held = {id: _leaf(one.told["prototypes"], device) for id, one in received.items()}
    tensors = {name: _leaf(tensor, device) for name, tensor in state["joint"].items()}
    rate = learning_rate_at(party.training, number, party.rounds)
    optimiser = Optimiser(tensors, party.training, rate, state["moments"])
    told = {**state["told"], **{str(id): one.told for id, one in received.items()}}
    knows, seen = knowledge(vertical, told, counts).to(device), seen_classes(vertical).to(device)
    there = torch.tensor([*(id in received for id in passive), True], device=device)
    draws = rng.child("hidden").torch()

    def steps(of: Learning) -> None:
        for minibatch, chosen in enumerate(state["rows"]):
            own = of.embed(take(party.splits[ALIGNED], chosen))
            embeddings = stacked_parties([*(_at(parts, id, minibatch) for id in passive), own], own)
            mine = of.prototypes
            prototypes = stacked_parties([*(held.get(id) for id in passive), mine], mine)
            hidden = torch.rand(len(chosen), len(there), generator=draws).to(device) < dropout
            hidden[:, -1] = False
            present = there & holds[chosen].to(device)
            views = Views(embeddings, prototypes, present, knows & there.unsqueeze(1), seen)
            loss = joint.loss(tensors, views.without(hidden), vertical.labels[chosen].to(device))
            # one backward pass gives all gradients; the joint model's own optimiser only steps
            of.optimiser.step(loss)
            optimiser.step_along()

    own, _ = learning(party, state["own"], number, rng.child("steps"), steps)
    back = {str(id): {"embeddings": _gradient(parts[id]), "prototypes": _gradient(held[id])} for id in sorted(received)}
    after = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    made = {**state, "own": own, "joint": after, "moments": optimiser.moments(), "told": told, "back": back}
    return cast(ActiveState, made)


def knowledge(vertical: Vertical, told: Mapping[str, Told], counts: Tensor) -> Tensor:
    """Whether each party has learned each class, (K, C): from aligned rows, or from labelled rows of its own."""
    everyone = seen_classes(vertical)
    passive = range(len(vertical.parties) - 1)
    own = [told[str(id)]["counts"] > 0 if str(id) in told else torch.zeros_like(everyone) for id in passive]
    return torch.stack([one | everyone for one in (*own, counts > 0)])


def _at(parts: Mapping[ClientId, Tensor], id: ClientId, minibatch: int) -> Tensor | None:
    return parts[id][minibatch] if id in parts else None


def _as_received(received: Received) -> Params:
    """Gradients of the shapes of what was received, for a plan."""
    parts = {"embeddings": received.embeddings, "prototypes": received.told["prototypes"]}
    return {name: torch.zeros_like(part) for name, part in parts.items()}


def _gradient(leaf: Tensor) -> Tensor:
    """The gradient of a leaf on the CPU, 0 where the loss does not depend on it."""
    return (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).detach().to("cpu", copy=True)


def _leaf(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor, of which a gradient is wanted."""
    return tensor.detach().to(device, copy=True).requires_grad_()
