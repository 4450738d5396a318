"""Selected rows and their weights: by hand, and as laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.vertical.losses import Weights, kept_rows, unaligned_loss
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.selection import NONE_SEEN, Selection, Tally, row_weights, tag_costs, tags
from fedquilt.vertical.transport import transport


def test_weights_by_hand():
    costs, classes = torch.tensor([0.1, 0.4, 0.2, 0.9]).double(), torch.tensor([0, 0, 0, 1])
    half = row_weights(costs, classes, Selection(keep=0.5, softness=1e9, balanced=False))
    # ranks within class 0 are 0, 2/3, 1/3: the second row is dropped; class 1 keeps its only row
    assert half.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    soft = row_weights(costs, classes, Selection(softness=0.1, balanced=False))
    expected = torch.exp(-(costs - 0.1) / 0.1)
    assert soft.tolist() == pytest.approx((expected / expected.sum()).tolist())


@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.05, 100), st.booleans())
def test_proto_5_weights_are_a_distribution_and_no_class_is_lost(seed, keep, softness, balanced):
    generator = Rng(seed).torch()
    costs = torch.randint(0, 5, (12,), generator=generator).double() / 4  # with ties
    classes = torch.randint(0, 4, (12,), generator=generator)
    found = row_weights(costs, classes, Selection(keep, softness, balanced))
    assert found.min() >= 0
    assert found.sum().item() == pytest.approx(1)
    for own in classes.unique():
        kept = (found[classes == own] > 0).sum().item()
        assert 1 <= kept <= max(1, -(-keep * (classes == own).sum().item() // 1) + 1)


@given(st.integers(0, 10_000))
def test_proto_5_balanced_classes_carry_equal_mass_where_cost_does_not_count(seed):
    classes = torch.randint(0, 4, (15,), generator=Rng(seed).torch())
    found = row_weights(torch.rand(15, generator=Rng(seed + 1).torch()).double(), classes, Selection(softness=1e9))
    masses = [found[classes == own].sum().item() for own in classes.unique()]
    assert masses == pytest.approx([1 / len(masses)] * len(masses))


def test_proto_5_no_gradient_goes_through_the_weights():
    scores = torch.rand(4, 3, requires_grad=True)
    found = transport(scores, torch.ones(3) / 3, torch.ones(4) / 4, 0.1)
    labels = torch.tensor([0, 1, 2, 0])
    for given_labels in (None, labels):
        costs = tag_costs(found, scores, given_labels)
        assert not row_weights(costs, tags(found, given_labels), Selection()).requires_grad
    assert torch.equal(tags(found, labels), labels)
    assert torch.equal(tags(found, None), found.forward.argmax(1))
    assert torch.allclose(tag_costs(found, scores, labels), 1 - scores.detach()[range(4), labels])


def test_rows_are_left_out_from_a_round_on():
    late = Selection(keep=0.5, after=3)
    assert [late.at(number).keep for number in (0, 2, 3, 9)] == [1.0, 1.0, 0.5, 0.5]
    assert late.at(0) == Selection(after=3)


def test_what_was_kept_is_told_by_class():
    tally = Tally(4)
    tally.add(torch.tensor([0, 0, 1, 3]), torch.tensor([True, False, True, False]))
    tally.add(torch.tensor([0, 0]), torch.tensor([True, False]))
    assert tally.shares().tolist() == [0.5, 1.0, NONE_SEEN, 0.0]


def learned(selection: Selection, seed: int, classes: int = 4, columns: int = 8, count: int = 240):
    """Accuracy of an encoder after 150 steps on rows of which 30 % have a wrong label; and, of the wrong and of the
    right ones, the share that was kept."""
    generator = Rng(seed).torch()
    centres = torch.randn(classes, columns, generator=generator)
    labels = torch.arange(2 * count) % classes
    rows = centres[labels] + 0.8 * torch.randn(2 * count, columns, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.3
    moved = torch.randint(1, classes, (count,), generator=generator)
    told = torch.where(wrong, (labels[:count] + moved) % classes, labels[:count])
    first, last, prototypes = (
        (torch.randn(*shape, generator=generator) / shape[0] ** 0.5).requires_grad_()
        for shape in ((columns, 64), (64, 8), (classes, 8))
    )
    optimiser, prior = torch.optim.Adam([first, last, prototypes], 5e-3), torch.full((classes,), 1 / classes)
    kept, seen = torch.zeros(2), torch.zeros(2)
    for step in range(150):
        chosen, now = torch.randint(0, count, (64,), generator=generator), selection.at(step // 20)
        embeddings = torch.relu(rows[chosen] @ first) @ last
        _, own = kept_rows(embeddings, prototypes, prior, told[chosen], now, 0.1)
        if now.keep < 1:
            kept += torch.stack([own[wrong[chosen]].sum(), own[~wrong[chosen]].sum()])
            seen += torch.stack([wrong[chosen].sum(), (~wrong[chosen]).sum()])
        optimiser.zero_grad()
        unaligned_loss(embeddings, prototypes, prior, told[chosen], now, Weights(temperature=0.1)).backward()
        optimiser.step()
    with torch.no_grad():
        found = cosines(torch.relu(rows[count:] @ first) @ last, prototypes).argmax(1)
    return float((found == labels[count:]).float().mean()), *(kept / seen.clamp_min(1)).tolist()


@pytest.mark.parametrize("after", [0, 2])
def test_proto_11_wrong_rows_are_kept_less_often_and_leaving_them_out_gains(after):
    without = [learned(Selection(), seed)[0] for seed in range(2)]
    accuracies, wrong, right = zip(*(learned(Selection(0.7, after=after), seed) for seed in range(2)), strict=True)
    assert max(wrong) < 0.5 < 0.85 < min(right)
    assert sum(accuracies) >= sum(without) + 2 * 0.03
