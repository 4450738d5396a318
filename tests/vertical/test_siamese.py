"""Self-supervision: by hand, against autograd with detached targets, and without parties that are missing."""

import torch
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.vertical.corruption import corrupted
from fedquilt.vertical.lesson import Lesson
from fedquilt.vertical.siamese import corrupted_views_loss, parties_loss, predictions, predictor_of, views_loss


def drawn(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=Rng(seed).torch()).double(), dim=-1)


def tensors():
    return {name: tensor.double() for name, tensor in predictor_of("p", 4, 8, Rng(1)).items()}


def module(made):
    inner = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).double()
    names = ("1.weight", "1.bias", "2.weight", "2.bias")
    inner.load_state_dict(dict(zip(inner.state_dict(), (made["p." + name] for name in names), strict=True)))
    return inner


def test_the_loss_and_its_gradient_are_those_of_cosines_with_detached_views():
    made, one, other = tensors(), drawn(5, 4).requires_grad_(), drawn(5, 4, seed=2).requires_grad_()
    predictor = module(made)
    loss = views_loss(made, "p", one, other)
    found = torch.autograd.grad(loss, (one, other))
    there = functional.cosine_similarity(predictor(one), other.detach()).mean()
    back = functional.cosine_similarity(predictor(other), one.detach()).mean()
    expected = -(there + back) / 2
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (one, other)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_missing_party_does_not_count():
    made, own, others = tensors(), drawn(3, 4), drawn(3, 2, 4, seed=2)
    guesses = predictions(made, "p", own)
    others[1, 0] = 0
    pairs = [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)]
    expected = -sum(float(guesses[row] @ others[row, party]) for row, party in pairs) / 5
    assert abs(float(parties_loss(made, "p", own, others)) - expected) < 1e-9
    assert parties_loss(made, "p", own, torch.zeros(3, 2, 4).double()) == 0


def test_views_of_own_rows_are_two_corruptions_and_need_no_labels():
    made, weight = tensors(), drawn(3, 4, seed=4).requires_grad_()
    rows = {"values": drawn(6, 3, seed=5), "labels": torch.full((6,), -1)}

    def embed(batch):
        return functional.normalize(batch["values"] @ weight, dim=1)

    lesson = Lesson(rows, None, embed, torch.zeros(2, 4), torch.zeros(2), made, 0, Rng(7))
    one, other = (embed(corrupted(rows, 0.5, Rng(7).child("view", view))) for view in (1, 2))
    assert not torch.equal(one, other)
    loss = corrupted_views_loss(lesson, "p", 0.5)
    assert torch.equal(loss, views_loss(made, "p", one, other))
    (found,) = torch.autograd.grad(loss, weight)
    assert found.abs().max() > 1e-3
