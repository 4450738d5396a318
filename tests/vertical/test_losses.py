"""The losses of parties: by hand, and messages' gradients against those of one model."""

import pytest
import torch
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.vertical.fusion import fused, gates
from fedquilt.vertical.losses import Weights, aligned_loss, unaligned_loss
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.selection import Selection
from fedquilt.vertical.transport import transport, transport_loss

EVEN = Selection(softness=1e9, balanced=False)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=Rng(seed).torch(), dtype=torch.float64)


def test_on_labelled_rows_it_is_cross_entropy_and_transport():
    rows, prototypes, labels = drawn(6, 3), drawn(4, 3, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    prior, weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), Weights(1.0, 0.1, temperature=0.5)
    scores = cosines(rows, prototypes)
    even = torch.full((6,), 1 / 6).double()
    carried = transport_loss(transport(scores, prior, even, 0.5), prior, even)
    expected = functional.cross_entropy(scores / 0.5, labels) + 0.1 * carried
    assert torch.allclose(unaligned_loss(rows, prototypes, prior, labels, EVEN, weights), expected)


def test_the_transport_moves_the_encoder_and_not_the_prototypes():
    rows, prototypes = drawn(6, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    prior, weights = torch.full((4,), 0.25).double(), Weights(unaligned=0.0, transported=1.0)
    unaligned_loss(rows, prototypes, prior, None, EVEN, weights).backward()
    assert rows.grad.abs().sum() > 0
    assert prototypes.grad.abs().sum() == 0


def party(seed):
    encoder = torch.nn.Linear(5, 3).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return encoder, drawn(4, 3, seed=seed + 10).requires_grad_()


def joint(embeddings, prototypes, gate, head, knows, labels):
    together = torch.cat(embeddings, 1)
    weights = gates(together @ gate, torch.ones(len(embeddings), dtype=torch.bool))
    scores = [cosines(own, theirs) for own, theirs in zip(embeddings, prototypes, strict=True)]
    return aligned_loss(scores, weights, knows, together @ head, labels, Weights())


@pytest.mark.parametrize("parties", [2, 3])
def test_proto_6_gradients_through_messages_are_those_of_one_model(parties):
    members = [party(seed) for seed in range(parties)]
    columns = [drawn(7, 5, seed=50 + seed) for seed in range(parties)]
    gate, head = drawn(3 * parties, parties, seed=90).requires_grad_(), drawn(3 * parties, 4, seed=91).requires_grad_()
    knows, labels = torch.ones(parties, 4, dtype=torch.bool), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    knows[0, 1] = False
    trained = [gate, head, *(t for encoder, prototypes in members for t in (*encoder.parameters(), prototypes))]

    sent = [encoder(own) for (encoder, _), own in zip(members, columns, strict=True)]
    whole = joint(sent, [prototypes for _, prototypes in members], gate, head, knows, labels)
    expected = torch.autograd.grad(whole, trained, retain_graph=True)

    # a passive party sends embeddings and prototypes, and is sent their gradients
    received = [own.detach().requires_grad_() for own in sent]
    theirs = [prototypes.detach().requires_grad_() for _, prototypes in members]
    loss = joint(received, theirs, gate, head, knows, labels)
    found = list(torch.autograd.grad(loss, [gate, head, *received, *theirs]))
    ours = found[:2]
    for number, (encoder, _) in enumerate(members):
        back = torch.autograd.grad(sent[number], list(encoder.parameters()), found[2 + number])
        ours += [*back, found[2 + parties + number]]
    for own, other in zip(ours, expected, strict=True):
        assert torch.allclose(own, other, atol=1e-10)


def test_proto_6_finite_differences_agree():
    rows, prototypes = drawn(3, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    gate, head = drawn(3, 1, seed=2).requires_grad_(), drawn(3, 4, seed=3).requires_grad_()
    knows, labels = torch.ones(1, 4, dtype=torch.bool), torch.tensor([0, 1, 3])

    def loss(rows, prototypes, gate, head):
        return joint([rows], [prototypes], gate, head, knows, labels)

    assert torch.autograd.gradcheck(loss, (rows, prototypes, gate, head))


def test_proto_6_a_party_that_knows_nothing_adds_nothing_to_the_fused_score():
    scores = torch.stack([drawn(5, 4), drawn(5, 4, seed=1)])
    weights = gates(drawn(5, 2, seed=2), torch.tensor([True, True]))
    knows = torch.tensor([[True] * 4, [False] * 4])
    alone = fused(scores[:1], weights[:, :1], knows[:1])
    assert torch.allclose(fused(scores, weights, knows), alone)


def test_the_loss_on_aligned_rows_by_hand():
    scores = [torch.tensor([[0.1, 0.0]]).double(), torch.tensor([[0.0, 0.1]]).double()]
    gate, head, everyone = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 2).double(), torch.ones(2, 2).bool()
    found = aligned_loss(scores, gate, everyone, head, torch.tensor([0]), Weights())
    right, wrong, even = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])
    entropy = [-own.double().log_softmax(0)[0] for own in (right, wrong, even)]
    # the gate trusts the first party alone: 0.5 * right + 0.5 * mean(right, wrong) + even
    assert torch.allclose(found, 0.5 * entropy[0] + 0.25 * (entropy[0] + entropy[1]) + entropy[2])
