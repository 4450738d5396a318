"""Self-supervision without negative pairs: one view of a row predicts the embedding of another view, which is held."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.vertical.corruption import corrupted
from fedquilt.vertical.joint import linear
from fedquilt.vertical.lesson import Lesson
from fedquilt.vertical.prototypes import unit


def predictor_of(name: str, width: int, hidden: int, rng: Rng) -> Params:
    """The tensors of a predictor: a perceptron with one hidden layer from embeddings to embeddings."""
    first, last = linear(hidden, width, rng.child(name, 1)), linear(width, hidden, rng.child(name, 2))
    return {
        f"{name}.1.weight": first[0],
        f"{name}.1.bias": first[1],
        f"{name}.2.weight": last[0],
        f"{name}.2.bias": last[1],
    }


def predictions(tensors: Params, name: str, embeddings: Tensor) -> Tensor:
    """What the predictor makes of embeddings, unit vectors (n, m)."""
    inner = torch.relu(embeddings @ tensors[f"{name}.1.weight"].T + tensors[f"{name}.1.bias"])
    return unit(inner @ tensors[f"{name}.2.weight"].T + tensors[f"{name}.2.bias"])


def views_loss(tensors: Params, name: str, one: Tensor, other: Tensor) -> Tensor:
    """Minus the mean cosine of each view's prediction with the other view's embedding; the embedding has no gradient.

    Parameters
    ----------
    tensors, name
        The party's own tensors, and the name of the predictor among them.
    one, other
        The unit embeddings of two views of the same rows, (n, m).

    Paper: simsiam, loss
    """
    there = (predictions(tensors, name, one) * other.detach()).sum(1).mean()
    back = (predictions(tensors, name, other) * one.detach()).sum(1).mean()
    return -(there + back) / 2


def corrupted_views_loss(of: Lesson, name: str, corruption: float) -> Tensor:
    """The loss of two views of a minibatch of a party's own rows, each with this share of its values replaced.

    ``name`` is that of the predictor among the method's own tensors.
    """
    one, other = (of.embed(corrupted(of.rows, corruption, of.rng.child("view", view))) for view in (1, 2))
    return views_loss(of.extra, name, one, other)


def parties_loss(tensors: Params, name: str, own: Tensor, others: Tensor) -> Tensor:
    """Minus the mean cosine of a party's predictions with what the other parties made of the same rows.

    Parameters
    ----------
    tensors, name
        The party's own tensors, and the name of the predictor among them.
    own
        Its unit embeddings, (n, m).
    others
        Those of all other parties, (n, K - 1, m), without gradients; zeros where a party was missing do not count.

    Paper: fedhssl, cross-party
    """
    there = others.square().sum(2) > 0.5  # an embedding is a unit vector or zeros
    cosines = (predictions(tensors, name, own).unsqueeze(1) * others).sum(2)
    return -(cosines * there).sum() / there.sum().clamp_min(1)
