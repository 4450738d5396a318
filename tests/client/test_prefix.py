"""What lower blocks make of a row is computed once a round where nothing below changes it, and otherwise each time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, rows, start_of, task_of, workbench
from torch import nn

from fedquilt.client.fit import fit
from fedquilt.client.workbench import Workbench
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training

RNG = Rng(4)
STEPS = 9
"""Of three epochs over ten rows in batches of four."""


def bench_of(model, dropout=0.0):
    bench = workbench(model)
    for module in bench.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return bench


def blocks_of(bench):
    return [*bench.model.get_submodule(bench.blocks.path)]


def names_from(bench, layer):
    """The tensors of this layer and those above, with the head."""
    return {name for name, depth in bench.layout.depth.items() if depth is None or depth >= layer}


def trained(model, bench, names, megabytes=1.0, **training):
    """What a client has learned, and how often the first block has run."""
    runs = []
    (norm, *_) = (module for module in blocks_of(bench)[0].modules() if "Norm" in type(module).__name__)
    handle = norm.register_forward_hook(lambda *_: runs.append(1))
    bench.prefix_bytes = int(megabytes * 2**20)
    how = Training(**{"epochs": 3, "batch_size": 4, **training})
    fitted = fit(bench, rows(task_of(model), 10), start_of(bench), names, how, 0.01, RNG)
    handle.remove()
    return fitted, len(runs)


def assert_close(one, other):
    assert one.params.keys() == other.params.keys()
    assert all(torch.allclose(one.params[name], other.params[name], atol=1e-5) for name in one.params)
    assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


@pytest.mark.parametrize("model", [VIT, BERT, LLAMA, GPT2])
@pytest.mark.parametrize("layer", [1, 2])
def test_later_epochs_begin_at_the_first_trained_block(model, layer):
    bench = bench_of(model)
    plain, every = trained(model, bench, names_from(bench, layer), 0)
    kept, few = trained(model, bench, names_from(bench, layer))
    assert every == STEPS
    assert few == 3 + 1  # the first epoch, and the trial, which is made once
    assert trained(model, bench, names_from(bench, layer))[1] == 3
    assert_close(kept, plain)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in bench.model.modules())
    again, _ = trained(model, bench, names_from(bench, layer), 0)
    assert all(torch.equal(again.params[name], plain.params[name]) for name in plain.params)


def test_of_a_head_alone_all_but_the_last_block_is_kept():
    bench = bench_of(VIT)
    kept, few = trained(VIT, bench, bench.layout.head)
    assert few == 3 + 1
    assert_close(kept, trained(VIT, bench, bench.layout.head, 0)[0])


@pytest.mark.parametrize(
    ("model", "layer", "megabytes", "training", "steps"),
    [
        (VIT, 0, 1, {}, STEPS),  # the first block is trained
        (VIT, 2, 0.001, {}, STEPS),  # no memory
        (VIT, 2, 1, {"epochs": 1}, 3),  # no row comes up again
        (VIT, 2, 1, {"gradient_checkpointing": True}, STEPS),
    ],
)
def test_nothing_is_kept_where_it_cannot_be_or_does_not_pay(model, layer, megabytes, training, steps):
    bench = bench_of(model)
    kept, runs = trained(model, bench, names_from(bench, layer), megabytes, **training)
    assert runs == steps
    plain, _ = trained(model, bench, names_from(bench, layer), 0, **training)
    assert all(torch.equal(kept.params[name], plain.params[name]) for name in plain.params)


def test_dropout_below_keeps_nothing_and_above_draws_the_same():
    bench = bench_of(BERT, 0.2)
    kept, runs = trained(BERT, bench, names_from(bench, 2))
    assert runs == STEPS
    plain, _ = trained(BERT, bench, names_from(bench, 2), 0)
    assert all(torch.equal(kept.params[name], plain.params[name]) for name in plain.params)
    for module in [bench.model.get_submodule("bert.embeddings"), *blocks_of(bench)[:2]]:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    kept, few = trained(BERT, bench, names_from(bench, 2))
    assert few == 3 + 1
    assert_close(kept, trained(BERT, bench, names_from(bench, 2), 0)[0])


def test_something_trained_before_the_blocks_keeps_nothing():
    bench = bench_of(VIT)
    token = bench.model.get_parameter("vit.embeddings.cls_token")
    depth, shapes = {**bench.layout.depth, "cls": None}, {**bench.layout.shapes, "cls": tuple(token.shape)}
    own = Workbench(
        bench.model,
        bench.blocks,
        replace(bench.layout, depth=depth, shapes=shapes),
        {**bench.parameters, "cls": token},
        bench.prepare,
        scoring=bench.scoring,
        device=bench.device,
    )
    start = {**start_of(bench), "cls": token.detach().clone()}
    columns, how = rows(task_of(VIT), 10), Training(epochs=3, batch_size=4)
    plain = fit(own, columns, start, names_from(own, 2), how, 0.01, RNG)
    own.prefix_bytes = 2**20
    kept = fit(own, columns, start, names_from(own, 2), how, 0.01, RNG)
    assert not torch.equal(plain.params["cls"], start["cls"])
    assert all(torch.equal(kept.params[name], plain.params[name]) for name in plain.params)


def test_a_model_that_uses_its_lower_blocks_elsewhere_is_found():
    bench = bench_of(VIT)
    blocks, seen = blocks_of(bench), []
    blocks[0].register_forward_hook(lambda _, args, output: seen.append(output))
    blocks[3].register_forward_hook(lambda _, args, output: output + 3 * seen.pop())
    own = [block.forward for block in blocks]
    plain, _ = trained(VIT, bench, names_from(bench, 2), 0)
    kept, runs = trained(VIT, bench, names_from(bench, 2))
    assert runs == STEPS + 1  # the trial
    assert_close(kept, plain)
    assert [block.forward for block in blocks] == own
