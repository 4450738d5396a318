"""The learnability filter: a network that predicts a sample's label, and one for what the first does not know.

The second network (exploration) reads the hidden activations of the first (exploitation), or the gradient of its
output, and learns the first one's errors. No gradient flows from the second to the first. With a prior both learn what
it leaves unexplained of the labels, and begin at 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.distill.clusters import cover
from fedquilt.distill.nets import forward, gradients, network, num_blocks, regressed
from fedquilt.distill.replay import Memory, noted, nothing, predictions, pushed, standard
from fedquilt.distill.reward import label, standardised
from fedquilt.distill.selection import Candidates, Filter, FilterSettings, taken

BLOCK = 64
"""Number of parameters whose mean gradient is one input of the second network."""

AVERAGE = 0.5
"""The label of an average sample, around which the first network begins."""


class LearnabilityState(Memory):
    """The filter's state: the weights of both networks, and what it remembers.

    With a prior the last candidates also have ``teacher`` (samples,), the teacher's mean log-probability per token of
    its path, and the labels of the replay are less the prior.
    """

    exploit: Params
    explore: Params


class Scores(NamedTuple):
    """What both networks make of candidates: scores, predictions (samples,), and the second one's inputs."""

    score: Tensor
    predicted: Tensor
    features: Tensor


def learnability(settings: FilterSettings) -> Filter:
    """The learnability filter with these settings."""
    informed = settings.prior == "confidence"

    def init(inputs: int, rng: Rng) -> LearnabilityState:
        shape = (settings.width, settings.depth)
        exploit = network(inputs, *shape, rng.child("exploit"), start=None if informed else AVERAGE)
        by_gradient = settings.explore_input == "gradient"
        hidden = num_blocks(exploit, BLOCK) if by_gradient else settings.width * settings.depth
        explore = network(hidden, *shape, rng.child("explore"), start=None if informed else 0.0)
        return LearnabilityState(**nothing(inputs, hidden), exploit=exploit, explore=explore)

    def score(state: LearnabilityState, candidates: Candidates, rng: Rng) -> Tensor:
        return known(candidates) + scored(state, standard(state, candidates.contexts), settings).score

    def known(candidates: Candidates) -> Tensor | float:
        return prior(candidates.teacher, settings) if informed else 0.0

    def choose(state: LearnabilityState, candidates: Candidates, rng: Rng) -> tuple[Tensor, LearnabilityState]:
        contexts = standard(state, candidates.contexts)
        found = scored(state, contexts, settings)
        positions = taken(known(candidates) + found.score, settings)
        if state["choices"] < settings.warm and len(contexts) and not informed:
            positions = cover(contexts, _first_share(settings), settings.clusters, rng.child("clusters"))
        memory = noted(state, candidates.contexts, found.features, found.predicted) if len(contexts) else state
        if informed and len(contexts):
            memory["last"]["teacher"] = candidates.teacher.detach().float().cpu()
        return positions, LearnabilityState(**{**state, **memory})

    def learn(state: LearnabilityState, positions: Tensor, labels: Tensor, version: int) -> LearnabilityState:
        if not len(positions):
            return state
        if informed:  # as the labels themselves: standardised over the samples that were learned from
            labels = labels.cpu() - prior(state["last"]["teacher"][positions.cpu()], settings)
        replay = pushed(state, positions, labels, version, most=settings.remembered, oldest=settings.oldest)
        exploit = _fitted(state["exploit"], replay["contexts"], replay["labels"], settings)
        explore = _fitted(state["explore"], replay["features"], residual(replay), settings)
        return LearnabilityState(**{**state, "replay": replay, "exploit": exploit, "explore": explore})

    def predicted(state: LearnabilityState) -> Tensor:
        found = predictions(state)
        return found + prior(state["last"]["teacher"], settings) if informed else found

    return Filter("learnability", init, score, choose, learn, predicted)


def prior(teacher: Tensor, settings: FilterSettings) -> Tensor:
    """The labels of samples if the teacher's confidence were their reward and that of their batch average, (samples,).

    ``teacher`` is its mean log-probability per token of its path.
    """
    if not len(teacher):
        return torch.zeros(0)
    return label(standardised(teacher.detach().double().cpu()), 0.0, settings.prior_weight)


def scored(state: LearnabilityState, contexts: Tensor, settings: FilterSettings) -> Scores:
    """``u = f1(x) + lambda f2(phi(x))`` of standardised contexts, with f1(x) and phi(x).

    Paper: lada, score
    """
    with torch.no_grad():
        first = forward(state["exploit"], contexts)
        features = first.hidden
        if settings.explore_input == "gradient":
            features = gradients(state["exploit"], contexts, BLOCK)
        second = forward(state["explore"], features)
    return Scores(first.value + settings.explore * second.value, first.value, features)


def residual(replay: Params) -> Tensor:
    """What the second network learns: the label minus what the first one predicted when the sample was chosen.

    Paper: lada, residual
    """
    return replay["labels"] - replay["predicted"]


def _first_share(settings: FilterSettings) -> float:
    """The share of a choice by clusters; before anything is learned, half of the candidates count as above average."""
    if settings.choice == "budget":
        return settings.share
    return min(max(0.5, settings.least), settings.most)


def _fitted(params: Params, inputs: Tensor, targets: Tensor, settings: FilterSettings) -> Params:
    return regressed(
        params,
        inputs,
        targets,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        absolute=settings.loss == "absolute",
    )
