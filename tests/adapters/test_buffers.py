import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fedquilt.adapters.buffers import numbers, state_of


class Counting(nn.Module):
    """Nobody's normalisation: its memory is of its own names, one of them put anew and one a flag."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("level", torch.zeros(4))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)

    def forward(self, x):
        if self.training:
            self.level = 0.9 * self.level + 0.1 * x.detach().mean(0)
            self.seen.fill_(True)
            self.scratch += 1
        return x - self.level


class Cached(nn.Module):
    """Remembers the last batch's mask whatever the mode: no memory of training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(1))
        self.register_buffer("positions", torch.arange(4))

    def forward(self, x):
        self.mask.fill_(float(len(x)))
        return x


def model(*modules):
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), *modules).eval()


def found(one, rows=3, device="cpu"):
    return state_of(one.to(device), {"input": torch.randn(rows, 4, device=device)})


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("module", "names"),
    [
        (lambda: nn.BatchNorm1d(4), {"running_mean", "running_var", "num_batches_tracked"}),
        (
            lambda: nn.BatchNorm1d(4, affine=False, momentum=None),
            {"running_mean", "running_var", "num_batches_tracked"},
        ),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), set()),
        (lambda: nn.LayerNorm(4), set()),
        (lambda: nn.GroupNorm(2, 4), set()),
        (Counting, {"seen", "level"}),
        (Cached, set()),
    ],
)
def test_state_is_what_a_training_pass_alone_changes(module, names, device):
    assert {name.rpartition(".")[2] for name in found(model(module()), device=device)} == names


def test_a_spectral_norm_has_state_under_the_path_of_its_own_module():
    assert {*found(model(spectral_norm(nn.Linear(4, 4))))} == {
        "2.parametrizations.weight.0._u",
        "2.parametrizations.weight.0._v",
    }


def test_trying_leaves_model_modes_and_streams_as_they_were():
    one = model(nn.BatchNorm1d(4), Counting())
    one[1].train()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    inputs = {"input": torch.arange(8.0).view(2, 4)}
    torch.manual_seed(1)
    assert state_of(one, inputs)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert [module.training for module in one] == [False, True, False, False]
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name])


def test_of_a_model_that_cannot_be_tried_every_module_with_numbers_of_its_own_counts():
    one = model(nn.BatchNorm1d(4), Cached())
    names = {name.rpartition(".")[2] for name in state_of(one, {"nothing": torch.zeros(1)})}
    assert names == {"running_mean", "running_var", "num_batches_tracked", "mask", "positions"}


def test_numbers_are_floats_and_come_back_as_what_they_were():
    one = model(nn.BatchNorm1d(4), Counting())
    state = found(one)
    given = numbers(state)
    assert {str(value.dtype) for value in given.values()} == {"torch.float32", "torch.float64"}
    state["2.num_batches_tracked"].put(torch.tensor(6.6, dtype=torch.float64))
    state["3.seen"].put(torch.tensor(0.7, dtype=torch.float64))
    assert (int(one[2].num_batches_tracked), bool(one[3].seen)) == (7, True)
    one[3].level = torch.ones(4)  # the module puts another tensor in its place: that is the one that is read
    assert torch.equal(numbers(state)["3.level"], torch.ones(4))
    for name, value in given.items():
        state[name].put(value)
    assert int(one[2].num_batches_tracked) == 0
    assert not one[3].seen
