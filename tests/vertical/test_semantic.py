"""Prototypes from attributes: gradients, zero-shot classes, and what is refused of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.vertical.losses import Weights, unaligned_loss
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.selection import Selection
from fedquilt.vertical.semantic import Semantic, attributes_of, made_of

KEY = "method.attributes"


def test_it_is_a_perceptron_of_the_attributes_and_its_gradients_are_those_of_finite_differences():
    semantic = Semantic(torch.randn(5, 3, generator=Rng(0).torch()), hidden=4)
    tensors = {name: one.double().requires_grad_() for name, one in semantic.init(6, Rng(1)).items()}
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 6)).double()
    layers.load_state_dict(
        {name.replace("semantic.1", "0").replace("semantic.2", "2"): tensors[name] for name in tensors}
    )
    assert torch.allclose(made_of(semantic.attributes.double(), tensors), layers(semantic.attributes.double()))
    assert torch.autograd.gradcheck(
        lambda *values: made_of(semantic.attributes.double(), dict(zip(tensors, values, strict=True))),
        [*tensors.values()],
    )


def test_classes_that_do_not_compete_get_no_gradient_and_change_no_loss():
    rows, labels = torch.randn(6, 4, generator=Rng(0).torch()), torch.tensor([0, 1, 0, 1, 0, 1])
    prototypes, prior = torch.randn(3, 4, generator=Rng(1).torch()).requires_grad_(), torch.tensor([0.5, 0.3, 0.2])
    known, chosen = torch.tensor([True, True, False]), Selection()
    loss = unaligned_loss(rows, prototypes, prior, labels, chosen, Weights(), known)
    loss.backward()
    assert (prototypes.grad[2] == 0).all()
    assert prototypes.grad[:2].abs().sum() > 0
    less = unaligned_loss(rows, prototypes[:2].detach(), prior[:2] / 0.8, labels, chosen, Weights())
    assert loss.item() == pytest.approx(less.item())


def test_a_class_without_rows_is_found_where_attributes_determine_the_means():
    """Six classes, of which the last has no rows: its recall is far above chance, also with the others in play."""
    recalls = []
    for seed in range(2):
        generator = Rng(seed).torch()
        codes = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).float()
        attributes = (codes - codes.mean(0)) / codes.std(0, correction=0)
        means = attributes @ torch.randn(3, 8, generator=generator)
        labels = torch.arange(600) % 6
        rows = means[labels] + 0.3 * torch.randn(600, 8, generator=generator)
        tensors = {name: one.requires_grad_() for name, one in Semantic(attributes, 16).init(8, Rng(seed)).items()}
        encoder = (torch.randn(8, 8, generator=generator) / 3).requires_grad_()
        optimiser, known = torch.optim.Adam([encoder, *tensors.values()], 1e-2), torch.arange(6) < 5
        prior, learned = torch.full((6,), 1 / 6), labels < 5
        for _ in range(60):
            optimiser.zero_grad()
            prototypes = made_of(attributes, tensors)
            own = unaligned_loss(
                rows[learned] @ encoder, prototypes, prior, labels[learned], Selection(), Weights(), known
            )
            own.backward()
            optimiser.step()
        with torch.no_grad():
            found = cosines(rows @ encoder, made_of(attributes, tensors)).argmax(1)
        recalls.append(float((found[labels == 5] == 5).float().mean()))
        assert float((found[learned] == labels[learned]).float().mean()) > 0.8
    assert min(recalls) > 0.5


def test_a_file_gives_standardised_attributes_in_the_order_of_the_classes(tmp_path: Path):
    file = tmp_path / "classes.csv"
    file.write_text("class,legs,wings,same\nbird,2,1,7\ncat,4,0,7\nfly,6,2,7\nfish,0,0,7\n")
    found = attributes_of(str(file), ["cat", "bird", "fly"], KEY)
    deviation = (8 / 3) ** 0.5
    assert found[:, 0].tolist() == pytest.approx([0, -2 / deviation, 2 / deviation])
    assert found[:, 1].mean().item() == pytest.approx(0, abs=1e-6)
    assert found[:, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class,legs\ncat,4\n", "has no row for the class 'bird'; the data has cat, bird"),
        ("class,legs\ncat,4\ncat,4\nbird,2\n", "has the class 'cat' twice"),
        ("class,legs\ncat,four\nbird,2\n", "class 'cat': 'four' is no finite number"),
        ("class,legs\ncat,inf\nbird,2\n", "class 'cat': 'inf' is no finite number"),
        ("class,legs\ncat,4,5\nbird,2\n", "needs a header and rows of as many cells"),
        ("class\ncat\nbird\n", "needs a header and rows of as many cells"),
        (None, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str | None, words: str):
    if text is not None:
        (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        attributes_of(str(tmp_path / "classes.csv"), ["cat", "bird"], KEY)
    assert f"method.attributes = '{tmp_path / 'classes.csv'}'" in str(caught.value)
    assert words in str(caught.value)
