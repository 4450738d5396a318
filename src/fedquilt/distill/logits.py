"""Distillation of next-token distributions, also between models whose tokenizers differ.

A teacher sends its k likeliest tokens at each position. Where the tokenizers differ, a student uses the positions at
which both texts are cut in the same place, and the tokens that both vocabularies have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

UNKNOWN = -1
"""In a map of vocabularies: the student has no such token."""

_MARKS = (("\u0120", " "), ("\u2581", " "), ("\u010a", "\n"), ("<0x0A>", "\n"))
"""Signs that tokenizers write for a blank and for a new line."""


class TopK(NamedTuple):
    """The k likeliest tokens at some positions, (positions, k), with their log-probabilities over the vocabulary."""

    tokens: Tensor
    log_probs: Tensor


def top_k(logits: Tensor, k: int) -> TopK:
    """The k likeliest tokens of logits (positions, vocabulary); of a smaller vocabulary all of them.

    Paper: fedmkt, top-k
    """
    found = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
    return TopK(found.indices, found.values)


def vocabulary_map(teacher: Sequence[str], student: Sequence[str]) -> Tensor:
    """For each of the teacher's tokens the student's token with the same text, or ``UNKNOWN``, (vocabulary,).

    Both are given as their tokenizers write them. A token that both write alike is the same; else the signs for blanks
    and new lines are read as what they stand for. The vocabulary of a model is its own to the last token.
    """
    exact: dict[str, int] = {}
    meant: dict[str, int] = {}
    for number, token in enumerate(student):
        exact.setdefault(token, number)
        meant.setdefault(_text(token), number)
    found = (exact.get(token, meant.get(_text(token), UNKNOWN)) for token in teacher)
    return torch.tensor([*found], dtype=torch.long)


def translated(top: TopK, vocabulary: Tensor) -> TopK:
    """The teacher's tokens as the student's; those that it lacks are ``UNKNOWN``, with probability 0."""
    tokens = vocabulary.to(top.tokens.device)[top.tokens]
    return TopK(tokens, top.log_probs.masked_fill(tokens == UNKNOWN, -torch.inf))


def cuts(tokens: Sequence[str]) -> list[int]:
    """The place in the text at which each token begins, in characters."""
    places, place = [], 0
    for token in tokens:
        places.append(place)
        place += len(_text(token))
    return places


def common_positions(teacher: Sequence[int], student: Sequence[int]) -> Tensor:
    """Pairs of a teacher's and a student's token that begin at the same place of the text, (pairs, 2), in order.

    Both are increasing places as ``cuts`` gives them. At such a place both models have read the same text; of several
    tokens at one place, which have no text, the last one counts.
    """
    own = {place: index for index, place in enumerate(student)}
    theirs = {place: index for index, place in enumerate(teacher)}
    pairs = [(index, own[place]) for place, index in theirs.items() if place in own]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def top_k_divergence(logits: Tensor, teacher: TopK) -> Tensor:
    """``sum_v q_v log(q_v / p_v) + (1 - Q) log((1 - Q) / (1 - P))`` at each position, (positions,), with gradients.

    q are the teacher's probabilities of its tokens, of which those that the student lacks have none, and p the
    student's of the same tokens; Q and P are their sums. The divergence of two distributions in which all other tokens
    are one: it is 0 where both agree, and where no token is common. Two tokens of the teacher that are one of the
    student's count together. 1 - P counts as at least 1e-7, so that it is finite.

    ``logits`` are the student's, (positions, vocabulary).

    Paper: fedmkt, divergence
    """
    own = logits.float().log_softmax(-1)
    tokens, log_q = (part.to(logits.device) for part in teacher)
    held = (tokens != UNKNOWN) & (tokens < own.shape[-1]) & log_q.isfinite()
    places = tokens.long().where(held, torch.zeros_like(tokens).long())
    mass = log_q.float().exp() * held
    q = torch.zeros_like(own).scatter_add(-1, places, mass)  # (positions, vocabulary)
    there = torch.zeros_like(own).scatter_add(-1, places, held.to(own)) > 0
    inner = (torch.xlogy(q, q) - q * own.masked_fill(q == 0, 0)).sum(-1)
    rest_q = (1 - q.sum(-1)).clamp(0, 1)
    rest_p = (1 - own.exp().masked_fill(~there, 0).sum(-1)).clamp(min=torch.finfo(own.dtype).eps)
    return inner + torch.xlogy(rest_q, rest_q) - rest_q * rest_p.log()


def distillation_loss(logits: Tensor, teacher: TopK, positions: Tensor | None = None) -> Tensor:
    """The mean divergence over positions, a scalar; 0 if there is none.

    Row t of ``logits`` and of ``teacher`` predicts token t of the path. ``positions`` (pairs, 2) are the rows of the
    teacher and of the student that go together, see ``common_positions``; None where their tokens are the same.
    """
    if positions is not None:
        teacher = TopK(teacher.tokens[positions[:, 0]], teacher.log_probs[positions[:, 0]])
        logits = logits[positions[:, 1]]
    return top_k_divergence(logits, teacher).mean() if len(logits) else logits.sum() * 0


def _text(token: str) -> str:
    """What a token stands for."""
    for mark, meaning in _MARKS:
        token = token.replace(mark, meaning)
    return token
