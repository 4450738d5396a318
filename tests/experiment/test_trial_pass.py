import pytest
import torch
from torch import nn

from fedquilt.adapters.lora.inject import inject, layout, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.client.task import Scoring
from fedquilt.client.workbench import Workbench
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.experiment.trial_pass import try_blocks, try_out, try_recomputing

ROWS = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "labels": torch.zeros(5).long()}


class Output:
    def __init__(self, logits):
        self.logits = logits


class Block(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.query, self.value, self.act = nn.Linear(4, 4), nn.Linear(4, 4), act

    def forward(self, x):
        made = self.query(x)
        made = made @ self.value.weight.T if self.act == "by its weight" else self.value(made)
        return x + (torch.zeros_like(made) if self.act == "zeros" else made), {}


class Toy(nn.Module):
    """Two blocks of two projections; ``act`` says what becomes of the second one's, and of the logits."""

    def __init__(self, act):
        super().__init__()
        self.layers = nn.ModuleList(Block(act) for _ in range(2))
        self.norm, self.act = nn.BatchNorm1d(4), act

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        x = self.norm(nn.functional.dropout(x, 0.5, self.training))
        if self.act == "only in training" and self.training:
            raise ValueError("rows must be of 2048 tokens\nand more words")
        if self.act == "wrong input":
            raise TypeError
        return Output({"a row each": x[:, 0], "none": None}.get(self.act, x))


def bench(act):
    model, blocks = Toy(act), Blocks("layers", 2)
    inject(model, blocks, LoraSettings(rank=2, alpha=2.0, targets=("query", "value")))
    where = layout(model, blocks, "toy")
    prepare = lambda batch: {"x": batch["x"]}  # noqa: E731
    return Workbench(
        model.eval(), blocks, where, trainable(model, where), prepare, scoring=Scoring(), device=torch.device("cpu")
    )


def test_a_model_that_can_is_left_as_it_was():
    able = bench("nothing else")
    before, drawn = {name: value.clone() for name, value in able.model.state_dict().items()}, torch.get_rng_state()
    try_out(able, ROWS, "toy")
    assert all(torch.equal(value, before[name]) for name, value in able.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not able.model.training
    assert not any(module._forward_hooks for module in able.model.modules())


@pytest.mark.parametrize(
    ("act", "text"),
    [
        ("only in training", r"model 'toy': Toy does not take these rows \(rows must be of 2048 tokens\); use a model"),
        ("wrong input", r"Toy does not take these rows \(TypeError\)"),
        ("a row each", r"Toy gives logits \(2,\), but the labels are \(2,\)"),
        ("none", r"Toy gives logits NoneType, but the labels are \(2,\)"),
        ("zeros", r"does not depend on its modules query, value, so adapters there would have no effect"),
        ("by its weight", r"does not call its modules 'value' .* list modules without 'value' in adapter.targets"),
    ],
)
def test_a_model_that_cannot_is_refused_with_the_reason(act, text):
    with pytest.raises(ModelError, match=text):
        try_out(bench(act), ROWS, "toy")


def test_blocks_that_cannot_do_without_the_others_are_refused_where_they_are_drawn():
    able = bench("nothing else")
    try_blocks(able, ROWS, "toy")
    assert len(able.model.layers) == 2
    wide = bench("nothing else")
    wide.model.layers[1].forward = lambda x: (x @ torch.ones(6, 4), {})  # a stage that wants six features
    with pytest.raises(ModelError, match=r"block 1 of Toy does not run without the others .* method.drop_layers = fal"):
        try_blocks(wide, ROWS, "toy")
    assert len(wide.model.layers) == 2


class Counting(nn.Module):
    """A block that does something else each time it runs, or fails when it runs again; it has state in ``act``."""

    def __init__(self, act):
        super().__init__()
        self.query, self.act, self.runs = nn.Linear(4, 4), act, 0
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        self.runs += 1
        if self.act == "counts":
            return x + self.runs * self.query(x).tanh(), {}
        if self.act == "falters" and self.runs == 3:  # the first time that a block runs again
            raise ValueError("a second call without a reset.")
        return x + nn.functional.dropout(self.norm(self.query(x)).tanh(), 0.5, self.training), {}


def counting(act):
    made = bench("nothing else")
    made.model.layers = nn.ModuleList(Counting(act) for _ in range(2))
    inject(made.model, made.blocks, LoraSettings(rank=2, alpha=2.0, targets=("query",)))
    where = layout(made.model, made.blocks, "toy")
    own = trainable(made.model, where)
    params = {
        name: torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) for name, tensor in own.items()
    }
    how = {"scoring": made.scoring, "device": made.device}
    return Workbench(made.model, made.blocks, where, own, made.prepare, **how), params


def test_a_model_whose_blocks_run_twice_alike_passes_the_trial_of_checkpointing():
    able, params = counting("nothing else")
    before, drawn = {name: value.clone() for name, value in able.model.named_buffers()}, torch.get_rng_state()
    try_recomputing(able, params, ROWS, "toy")
    assert all(torch.equal(value, before[name]) for name, value in able.model.named_buffers())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in able.parameters.values())


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (
            "counts",
            r"do not compute the same when they run again \(the gradient of layers.* is another one\); set it to",
        ),
        ("falters", r"training.gradient_checkpointing = true does not work .* \(a second call without a reset\); set"),
    ],
)
def test_a_model_whose_blocks_do_not_is_refused(act, text):
    with pytest.raises(ModelError, match=text):
        try_recomputing(*counting(act), ROWS, "toy")
