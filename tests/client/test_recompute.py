"""Gradient checkpointing: nothing is kept, nothing else changes, and blocks that cannot run twice are found."""

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, rows, start_of, task_of, workbench
from torch import nn

from fedquilt.client.fit import fit
from fedquilt.client.recompute import recomputed
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training

SEED = Rng(4)


def gradients(bench, batch, names, recompute, blocks=None):
    """All gradients of one pass, and the bytes that autograd kept for it."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    bench.load(start_of(bench))
    with SEED.scope(), bench.shallow(blocks), bench.training(names, recompute=recompute) as trained:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits, labels = bench.forward(batch)
        bench.scoring.loss(logits, labels).sum().backward()
        return [tensor.grad for tensor in trained], sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [VIT, BERT, LLAMA, GPT2])
def test_gradients_are_the_same_bits_and_most_activations_are_not_kept(model, precision):
    bench = workbench(model, dropout=0.3, precision=precision)
    batch = rows(task_of(model), 4)
    plain, whole = gradients(bench, batch, bench.layout.depth, False)
    again, few = gradients(bench, batch, bench.layout.depth, True)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert any(bool(one.any()) for one in plain)
    assert few < 0.4 * whole


@pytest.mark.parametrize("blocks", [None, (1, 2)])
def test_frozen_blocks_below_and_blocks_that_are_left_out(blocks):
    bench, batch = workbench(VIT, dropout=0.3), rows("image-classification", 4)
    names = [*bench.layout.names([2]), *bench.layout.head]
    plain, again = (gradients(bench, batch, names, recompute, blocks)[0] for recompute in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_evaluation_in_between_is_as_ever_and_nothing_stays_on_the_model():
    bench, batch, calls = workbench(VIT), rows("image-classification", 4), []
    (block, *_) = bench.model.get_submodule(bench.blocks.path)
    bench.load(start_of(bench))
    with torch.no_grad():
        before = bench.forward(batch)[0]
    hook = block.layernorm_before.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with bench.training(bench.layout.depth, recompute=True):
        with bench.asked():
            assert torch.equal(bench.forward(batch)[0], before)
        assert calls == [False]
        bench.forward(batch)[0].sum().backward()
        assert calls == [False, True, True]
    hook.remove()
    assert not any("forward" in vars(module) for module in bench.model.modules())


def test_a_forward_that_a_tool_put_there_is_run_and_put_back():
    block = nn.Linear(2, 2)
    own = block.forward = lambda x: 3 * x
    with recomputed([block], lambda _: pytest.fail("nothing is run twice")), torch.no_grad():
        assert torch.equal(block(torch.ones(2)), torch.full((2,), 3.0))
        assert block.forward is not own
    assert block.forward is own


class Twice(nn.Module):
    """A block that is given its input by name, beside what is no tensor."""

    def forward(self, *, hidden, how):
        return {"made": hidden.sin().sin() * how["factor"]}


def test_inputs_by_name_are_kept_as_tensors_and_let_go_of():
    block, seen = Twice(), []
    x = torch.ones(5, requires_grad=True)
    with recomputed([block], lambda _: torch.autograd.profiler.record_function("again")):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
            made = block(hidden=2 * x, how={"factor": 3.0})["made"]
        made.sum().backward()
    assert seen == [x.shape]  # the block's input, and none of its own
    torch.testing.assert_close(x.grad, torch.full((5,), 6.0) * torch.tensor(2.0).sin().cos() * torch.tensor(2.0).cos())


def test_every_pass_of_a_step_is_run_again_for_itself():
    """Accumulation: several passes, each with its backward, before one step."""
    bench, columns = workbench(BERT, dropout=0.3), rows("sequence-classification", 10)
    training = [
        Training(steps=3, batch_size=3, accumulation=2, gradient_checkpointing=recompute) for recompute in (False, True)
    ]
    plain, again = (fit(bench, columns, start_of(bench), bench.layout.depth, how, 0.1, SEED).params for how in training)
    assert all(torch.equal(plain[name], again[name]) for name in bench.layout.depth)
