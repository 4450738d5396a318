"""Local training, against a bare torch loop and numbers by hand."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, rows, start_of, task_of, workbench
from torch.nn import functional

import fedquilt.client.fit as fit_module
from fedquilt.client.fit import batches, fit
from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training, learning_rate_at, num_steps

SEED = Rng(21).child("fit")
PLAIN = Training(steps=3, epochs=None, batch_size=4, optimizer="sgd")


def trained(bench, training=PLAIN, *, layers=range(4), rate=0.1, rng=SEED, columns=None, start=None, blocks=None):
    names = [*bench.layout.names(layers), *bench.layout.head]
    columns = rows("image-classification", 10) if columns is None else columns
    return fit(bench, columns, start or start_of(bench), names, training, rate, rng, blocks=blocks)


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def change(params, start) -> dict[str, torch.Tensor]:
    return {name: tensor - start[name] for name, tensor in params.items()}


# The same steps as a loop of torch alone ------------------------------------------------------------


def bare_loop(bench, columns, start, names, training, rate, rng, optimizer_class, **settings):
    """What a person would write without fedquilt, on the same batches and the same dropout."""
    model = deepcopy(bench.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            parameters[name].copy_(value)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    opened = [parameters[name] for name in bench.layout.depth if name in names]  # sums of norms need one order
    optimizer = optimizer_class(opened, lr=rate, **settings)
    model.train()
    with rng.child("dropout").scope():
        for chosen in batches(len(columns["labels"]), training, rng.child("batches")):
            optimizer.zero_grad()
            batch = {name: column[chosen] for name, column in columns.items()}
            inputs = bench.prepare(batch)
            logits, labels = model(**inputs).logits, batch["labels"]
            if labels.dim() > 1:
                labels = labels[:, 1 : inputs["input_ids"].shape[1]]
                logits = logits[:, :-1]
            functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(opened, training.clip_norm)
            optimizer.step()
    return {name: parameters[name].detach() for name in names}


@pytest.mark.parametrize("model", [VIT, BERT, GPT2])
@pytest.mark.parametrize(
    ("training", "optimizer", "settings"),
    [
        (Training(steps=4, epochs=None, batch_size=4, optimizer="sgd"), torch.optim.SGD, {}),
        (
            Training(epochs=2, batch_size=3, optimizer="sgd", momentum=0.9, weight_decay=0.01),
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 0.01},
        ),
        (Training(epochs=1, batch_size=4), torch.optim.AdamW, {"weight_decay": 0.0}),
        (
            Training(epochs=1, batch_size=4, weight_decay=0.1, clip_norm=0.05),
            torch.optim.AdamW,
            {"weight_decay": 0.1},
        ),
    ],
    ids=["sgd", "sgd-momentum-decay", "adamw", "adamw-decay-clip"],
)
def test_fit_is_the_bare_loop_to_the_bit(model, training, optimizer, settings):
    bench = workbench(model, dropout=0.2)
    start, columns = start_of(bench), rows(task_of(model), 10)
    names = [*bench.layout.names([0, 2]), *bench.layout.head]
    expected = bare_loop(bench, columns, start, names, training, 0.05, SEED, optimizer, **settings)
    fitted = fit(bench, columns, start, names, training, 0.05, SEED)
    assert same(fitted.params, expected)
    assert not any(torch.equal(fitted.params[name], start[name]) for name in names)


def test_a_language_models_fit_is_the_bare_loop():
    bench = workbench(LLAMA)
    start, columns, names = start_of(bench), rows("causal-lm", 9), list(workbench(LLAMA).layout.depth)
    expected = bare_loop(bench, columns, start, names, PLAIN, 0.1, SEED, torch.optim.SGD)
    fitted = fit(bench, columns, start, names, PLAIN, 0.1, SEED)
    for name in names:  # the mean is over tokens: summed here, averaged inside torch there
        torch.testing.assert_close(
            change(fitted.params, start)[name], change(expected, start)[name], rtol=1e-4, atol=1e-7
        )
    assert fitted.metrics["steps"] == 3


# Steps, epochs, batches ------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "sizes"),
    [
        (Training(epochs=1, batch_size=4), [4, 4, 2]),
        (Training(epochs=2, batch_size=4), [4, 4, 2, 4, 4, 2]),
        (Training(steps=5, epochs=None, batch_size=4), [4, 4, 2, 4, 4]),
        (Training(steps=2, epochs=None, batch_size=64), [10, 10]),
        (Training(epochs=1, batch_size=2, accumulation=3), [6, 4]),
        (Training(epochs=1, batch_size=32, accumulation=4), [10]),
    ],
)
def test_batches_of_ten_rows(training, sizes):
    drawn = [chosen.tolist() for chosen in batches(10, training, SEED)]
    assert [len(chosen) for chosen in drawn] == sizes
    assert num_steps(10, training) == len(sizes)
    whole = [row for chosen in drawn for row in chosen]
    passes = [whole[first : first + 10] for first in range(0, len(whole), 10)]
    for one in passes:  # within a pass no row comes twice
        assert len(set(one)) == len(one)
    if len(passes) > 1:
        assert passes[0] != passes[1]
    assert drawn == [chosen.tolist() for chosen in batches(10, training, SEED)]


def test_an_epoch_is_as_many_steps():
    by_epochs = trained(workbench(), Training(epochs=2, batch_size=4, optimizer="sgd"))
    by_steps = trained(workbench(), Training(steps=6, epochs=None, batch_size=4, optimizer="sgd"))
    assert same(by_epochs.params, by_steps.params)
    assert by_epochs.metrics == by_steps.metrics
    assert by_epochs.metrics["steps"] == 6


@pytest.mark.parametrize("model", [VIT, LLAMA])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulation_equals_the_large_batch(model, optimizer):
    """Also where sentences have unlike numbers of labelled tokens: the mean is over all tokens of the step."""
    columns = rows(task_of(model), 14)
    large = Training(steps=3, epochs=None, batch_size=8, optimizer=optimizer)
    parts = Training(steps=3, epochs=None, batch_size=2, accumulation=4, optimizer=optimizer)
    bench = workbench(model)
    start = start_of(bench)
    one, many = (trained(bench, t, layers=range(3), columns=columns, rate=0.01) for t in (large, parts))
    for name in one.params:
        expected = one.params[name] - start[name]
        torch.testing.assert_close(
            many.params[name] - start[name], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-7
        )
    assert many.metrics == pytest.approx(one.metrics, rel=1e-5)


def test_metrics_are_means_over_the_labels_before_each_step():
    bench, columns = workbench(), rows("image-classification", 10)
    fitted = trained(bench, Training(epochs=1, batch_size=4, optimizer="sgd"), rate=0.0, columns=columns)
    bench.load(start_of(bench))
    with torch.no_grad():
        logits, labels = bench.forward(columns)
    assert fitted.metrics["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert fitted.metrics["accuracy"] == (logits.argmax(1) == labels).double().mean().item()


def test_every_step_is_told():
    bench, told = workbench(), []
    bench.stepped = lambda step, steps: told.append((step, steps))
    trained(bench)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_training_learns():
    bench = workbench()
    columns = rows("image-classification", 32)
    first = trained(bench, Training(epochs=1, batch_size=32), rate=0.0, columns=columns).metrics["loss"]
    fitted = trained(bench, Training(epochs=10, batch_size=8), rate=0.05, columns=columns)
    last = trained(bench, Training(epochs=1, batch_size=32), rate=0.0, columns=columns, start=fitted.params).metrics
    assert last["loss"] < 0.5 * first


# Clipping ------------------------------------------------------------


def test_one_clipped_step_is_as_long_as_the_bound():
    bench = workbench()
    start = start_of(bench)
    one = Training(steps=1, epochs=None, batch_size=10, optimizer="sgd")
    free = change(trained(bench, one, rate=1.0).params, start)
    length = math.sqrt(sum(float(d.square().sum()) for d in free.values()))
    bound = length / 3
    clipped = change(trained(bench, Training(**{**vars(one), "clip_norm": bound}), rate=1.0).params, start)
    assert math.sqrt(sum(float(d.square().sum()) for d in clipped.values())) == pytest.approx(bound, rel=1e-3)
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] / 3, rtol=1e-2, atol=1e-6)


def test_a_bound_that_is_not_reached_changes_nothing():
    bench = workbench()
    assert same(trained(bench).params, trained(bench, Training(**{**vars(PLAIN), "clip_norm": 1e6})).params)


def test_clipping_looks_at_all_parts_of_an_accumulated_step():
    bench = workbench()
    start = start_of(bench)
    whole = Training(steps=1, epochs=None, batch_size=8, optimizer="sgd", clip_norm=1e-2)
    parts = Training(**{**vars(whole), "batch_size": 2, "accumulation": 4})
    one, many = (change(trained(bench, t, rate=1.0).params, start) for t in (whole, parts))
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-3, atol=1e-6)


# Randomness ------------------------------------------------------------


def test_the_same_stream_gives_the_same_bits_dropout_included():
    bench = workbench(dropout=0.4)
    first = trained(bench)
    trained(bench, rng=SEED.child("someone else"), columns=rows("image-classification", 7, "others"))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = trained(bench)
    assert torch.equal(before, torch.get_rng_state())
    assert same(first.params, again.params)
    assert first.metrics == again.metrics
    assert not same(first.params, trained(bench, rng=Rng(22)).params)


def test_dropout_acts_in_training_and_has_a_stream_of_its_own():
    full = Training(
        steps=1, epochs=None, batch_size=10, optimizer="sgd"
    )  # one batch: its order is all the shuffle does
    dropped, without = (trained(workbench(dropout=p), full) for p in (0.4, 0.0))
    assert not same(dropped.params, without.params)
    seen = []
    for p in (0.4, 0.0):
        bench = workbench(dropout=p)
        prepare = bench.prepare
        bench.prepare = lambda batch, prepare=prepare: seen.append(batch["labels"].tolist()) or prepare(batch)
        trained(bench)
    assert seen[:3] == seen[3:]  # dropout moves no draw of the batches


# Freezing ------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layers", [(1,), (0, 3), (2, 3)])
def test_t13_untrained_layers_have_no_gradient_no_optimizer_state_no_change_and_are_not_returned(
    monkeypatch, optimizer, layers
):
    """T13"""
    bench, made, grads = workbench(), [], []
    make = fit_module.optimizer_of
    monkeypatch.setattr(fit_module, "optimizer_of", lambda *args: made.append(make(*args)) or made[-1])
    bench.stepped = lambda *_: grads.append({n for n, p in bench.model.named_parameters() if p.grad is not None})
    start = start_of(bench)
    base = {n: p.detach().clone() for n, p in bench.model.named_parameters() if n not in bench.parameters}
    fitted = trained(bench, Training(**{**vars(PLAIN), "optimizer": optimizer, "momentum": 0.9}), layers=layers)
    names = {*bench.layout.names(layers), *bench.layout.head}
    assert grads == [names] * 3
    (held,) = made
    name_of = {id(parameter): name for name, parameter in bench.parameters.items()}
    assert {name_of[id(p)] for group in held.param_groups for p in group["params"]} == names
    assert {name_of[id(p)] for p in held.state} == names
    assert fitted.params.keys() == names
    assert all(torch.equal(bench.parameters[name], start[name]) for name in start.keys() - names)
    assert all(torch.equal(bench.model.get_parameter(name), value) for name, value in base.items())


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_t15_every_trained_layer_moves(layers):
    """T15: B after one step from B = 0 (A has no gradient yet), both factors after two."""
    for steps, factors in ((1, ("lora_B",)), (2, ("lora_A", "lora_B"))):
        bench = workbench()
        start = start_of(bench, zero=True)
        fitted = trained(
            bench, Training(steps=steps, epochs=None, optimizer="sgd"), layers=layers, start=start, rate=1.0
        )
        moved = {name for name, delta in change(fitted.params, start).items() if bool(delta.any())}
        assert moved == {n for n in bench.layout.names(layers) if n.endswith(factors)} | bench.layout.head


def test_t15_block_ten_of_twelve_moves_where_block_zero_stays():
    """T15 where names of frozen blocks are part of a trained one's: 0 and 1 lie in 10 and 11."""
    bench = workbench("tiny:vit?layers=12&width=8&image=4&patch=2")
    start = start_of(bench)
    fitted = trained(bench, layers=(10, 11))
    assert {bench.layout.depth[name] for name in fitted.params} == {10, 11, None}
    assert all(bool(delta.any()) for delta in change(fitted.params, start).values())


@pytest.mark.parametrize("layers", [(3,), (2,), (1, 3), (0, 3)])
def test_the_backward_pass_stops_at_the_shallowest_trained_block(layers):
    bench, graph = workbench(), {}
    for index, block in enumerate(bench.model.get_submodule(bench.blocks.path)):

        def note(_block, _args, output, index=index):
            graph[index] = (output if isinstance(output, torch.Tensor) else output[0]).grad_fn is not None

        block.register_forward_hook(note)
    trained(bench, layers=layers)
    assert graph == {index: index >= min(layers) for index in range(4)}


def test_training_the_top_only_keeps_fewer_activations():
    def kept(layers) -> int:
        bench, sizes = workbench(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            trained(bench, Training(steps=1, epochs=None, batch_size=10, optimizer="sgd"), layers=layers)
        return sum(sizes)

    assert kept([3]) < 0.6 * kept([0])


def assert_closed(bench) -> None:
    assert not any(parameter.requires_grad for parameter in bench.model.parameters())
    assert all(parameter.grad is None for parameter in bench.model.parameters())
    assert not any(module.training for module in bench.model.modules())
    assert len(bench.model.get_submodule(bench.blocks.path)) == bench.blocks.num_layers


def test_after_fit_nothing_requires_a_gradient():
    bench = workbench()
    fitted = trained(bench, layers=[0, 2], blocks=[0, 2])
    assert_closed(bench)
    assert not any(tensor.requires_grad for tensor in fitted.params.values())


# What goes wrong ------------------------------------------------------------


def spoiled(value: float) -> dict[str, torch.Tensor]:
    columns = rows("image-classification", 10)
    return {**columns, "pixel_values": columns["pixel_values"].float().index_fill(0, torch.tensor([3]), value)}


def test_t31_a_loss_that_is_not_finite_stops_training_and_is_named():
    """T31, the client's side"""
    bench = workbench()
    with pytest.raises(TrainingError, match=r"^loss is nan at step [123]$"):
        trained(bench, columns=spoiled(float("nan")), layers=[1, 3], blocks=[1, 3])
    assert_closed(bench)
    start = start_of(bench)
    bench.load(start)  # and the next client starts afresh
    assert trained(bench).metrics["steps"] == 3


def test_t31_a_gradient_that_is_not_finite_is_named_where_it_is_clipped():
    """T31: the loss is finite and its gradient is not."""
    bench = workbench()
    module = next(m for n, m in bench.model.named_modules() if n.endswith("classifier"))
    module.register_full_backward_pre_hook(lambda _module, grads: (grads[0] * float("inf"),))
    clipped = Training(**{**vars(PLAIN), "clip_norm": 1.0})
    with pytest.raises(TrainingError, match=r"^gradient norm is (nan|inf) at step 1$"):
        trained(bench, clipped)
    assert_closed(bench)
    with pytest.raises(TrainingError, match=r"^loss is nan at step 2$"):
        trained(bench)


def test_a_rate_that_is_too_high_is_named():
    with pytest.raises(TrainingError, match=r"^loss is (nan|inf) at step"):
        trained(workbench(), Training(steps=20, epochs=None, optimizer="sgd"), rate=1e30)


def test_a_client_without_rows_cannot_train():
    with pytest.raises(TrainingError, match="no training rows"):
        trained(workbench(), columns={n: c[:0] for n, c in rows("image-classification", 1).items()})


def test_a_batch_without_a_single_label_is_a_step_that_changes_nothing():
    bench = workbench(LLAMA)
    columns = rows("causal-lm", 4)
    columns["labels"] = torch.full_like(columns["labels"], -100)
    fitted = trained(bench, Training(steps=1, epochs=None, optimizer="sgd"), layers=[2], columns=columns)
    assert fitted.metrics == {"loss": 0.0, "accuracy": 0.0, "steps": 1.0}
    assert not any(bool(delta.any()) for delta in change(fitted.params, start_of(bench)).values())


def test_bf16_trains_float32_parameters():
    exact, half = (trained(workbench(precision=precision)) for precision in ("fp32", "bf16"))
    assert {tensor.dtype for tensor in half.params.values()} == {torch.float32}
    assert half.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.02)
    assert half.metrics["loss"] != exact.metrics["loss"]


def test_on_meta_fit_gives_shapes_without_numbers():
    bench = workbench()
    bench.model.to("meta")
    bench.parameters = {name: bench.model.get_parameter(name) for name in bench.parameters}
    bench.device = torch.device("meta")
    fitted = trained(bench, layers=[1])
    assert {n: tuple(t.shape) for n, t in fitted.params.items()} == {
        n: s for n, s in bench.layout.shapes.items() if bench.layout.depth[n] in (1, None)
    }
    assert all(tensor.is_meta for tensor in fitted.params.values())


# The learning rate of a round ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_rounds": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        # five rounds from 1 to 0.2 after none of warm-up: down by 0.16 a round
        ({"schedule": "linear", "final_scale": 0.2}, [1, 0.84, 0.68, 0.52, 0.36, 0.2]),
        # two rounds of warm-up, then from round 2 to round 5 from 1 to 0.1 by thirds of 0.9
        ({"schedule": "linear", "warmup_rounds": 2}, [0.5, 1, 1, 0.7, 0.4, 0.1]),
        # 0.1 + 0.9 (1 + cos(pi i / 5)) / 2
        ({"schedule": "cosine"}, [1, 0.9140576, 0.6890576, 0.4109424, 0.1859424, 0.1]),
        ({"schedule": "cosine", "warmup_rounds": 3, "final_scale": 0}, [1 / 3, 2 / 3, 1, 1, 0.5, 0]),
        ({"schedule": "linear", "warmup_rounds": 6}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_t33_learning_rate_of_six_rounds_by_hand(settings, expected):
    """T33"""
    training = Training(learning_rate=2.0, **settings)
    rates = [learning_rate_at(training, number, 6) for number in range(6)]
    assert rates == pytest.approx([2 * factor for factor in expected], abs=1e-6)


def test_t33_decay_goes_on_to_the_end_and_not_once_in_the_first_round():
    """T33: the released code's precedence slip decayed in round 0 alone."""
    training = Training(learning_rate=0.01, schedule="linear", final_scale=0.0)
    rates = [learning_rate_at(training, number, 500) for number in range(500)]
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[0] == 0.01
    assert rates[-1] == 0
    assert learning_rate_at(training, 900, 500) == 0  # never below, should a run go on
    assert learning_rate_at(training, 0, 1) == 0.01
