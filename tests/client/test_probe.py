"""Fisher information by one batched backward, against one backward for every row."""

from __future__ import annotations

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, rows, start_of, task_of, workbench

from fedquilt.client.probe import fisher_diagonal, layer_scores
from fedquilt.core.types import Layout

CASES = [
    (VIT, "image-classification"),
    (BERT, "sequence-classification"),
    (LLAMA, "sequence-classification"),
    (GPT2, "sequence-classification"),
    (LLAMA, "causal-lm"),
    (GPT2, "causal-lm"),
]


def brute_force(bench, columns, params, objective="log-prob") -> dict[str, torch.Tensor]:
    """One forward and one backward for every row by itself, in the plainest words."""
    bench.load(params)
    names = [name for name in bench.layout.depth if name not in bench.layout.head]
    leaves = [bench.parameters[name].requires_grad_(True) for name in names]
    total = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    for row in range(len(columns["labels"])):
        one = {name: column[row : row + 1] for name, column in columns.items()}
        logits, labels = bench.model(**bench.prepare(one)).logits[0], one["labels"][0]
        if labels.dim():  # tokens
            pairs = [(logits[t - 1], labels[t]) for t in range(1, len(logits)) if labels[t] != -100]
        else:
            pairs = [(logits, labels)]
        value = sum((line.log_softmax(0) if objective == "log-prob" else line)[label] for line, label in pairs)
        for sum_, gradient in zip(total, torch.autograd.grad(value, leaves), strict=True):
            sum_ += gradient.double() ** 2
    for leaf in leaves:
        leaf.requires_grad_(False)
    return {name: sum_ / len(columns["labels"]) for name, sum_ in zip(names, total, strict=True)}


def assert_equal(actual, expected, rtol=1e-5) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name].double(), tensor.double(), rtol=rtol, atol=rtol * float(tensor.abs().max())
        )


@pytest.mark.parametrize(("model", "task"), CASES)
@pytest.mark.parametrize("objective", ["log-prob", "logit"])
def test_t8_fisher_is_the_mean_squared_gradient_of_every_row(model, task, objective):
    """T8"""
    bench = workbench(model, task, rank=3)
    columns, params = rows(task, 7), start_of(bench)
    expected = brute_force(bench, columns, params, objective)
    assert all(bool(tensor.any()) for tensor in expected.values())
    assert_equal(fisher_diagonal(bench, columns, params, objective=objective, batch_size=4), expected)


def test_t8_it_is_not_the_square_of_the_mean_gradient():
    """T8: averaging signed gradients first measures something else, and smaller."""
    bench = workbench()
    columns, params = rows("image-classification", 7), start_of(bench)
    fisher = fisher_diagonal(bench, columns, params)
    alone = [fisher_diagonal(bench, {n: c[r : r + 1] for n, c in columns.items()}, params) for r in range(7)]
    assert_equal(fisher, {name: sum(one[name].double() for one in alone) / 7 for name in fisher})


@pytest.mark.parametrize(("model", "task"), CASES)
def test_t7_the_batch_size_does_not_matter(model, task):
    """T7"""
    bench = workbench(model, task)
    columns, params = rows(task, 9), start_of(bench)
    expected = fisher_diagonal(bench, columns, params, batch_size=9)
    for batch_size in (1, 4, 32):
        assert_equal(fisher_diagonal(bench, columns, params, batch_size=batch_size), expected)


def test_t9_a_vector_added_to_every_class_leaves_the_scores_and_changes_those_of_raw_logits():
    """T9"""
    bench = workbench()
    columns, params = rows("image-classification", 8), start_of(bench)
    shift = torch.linspace(-1, 1, 8)
    shifted = {**params, "classifier.weight": params["classifier.weight"] + shift}
    for kind in ("trace", "norm"):
        before, after = (
            {
                objective: layer_scores(fisher_diagonal(bench, columns, p, objective=objective), bench.layout, kind)
                for objective in ("log-prob", "logit")
            }
            for p in (params, shifted)
        )
        assert after["log-prob"] == pytest.approx(before["log-prob"], rel=1e-4)
        assert after["logit"] != pytest.approx(before["logit"], rel=0.1)


@pytest.mark.parametrize(("model", "task"), CASES)
def test_t10_with_b_zero_only_b_contributes(model, task):
    """T10"""
    bench = workbench(model, task)
    fisher = fisher_diagonal(bench, rows(task, 5), start_of(bench, zero=True))
    for name, diagonal in fisher.items():
        assert bool(diagonal.any()) == name.endswith("lora_B")


@pytest.mark.parametrize("batch_size", [1, 4, 10, 32])
def test_t12_every_row_is_used_once(batch_size):
    """T12"""
    bench, seen = workbench(), []
    prepare = bench.prepare

    def noting(batch):
        seen.extend(batch["row"].tolist())
        return prepare(batch)

    bench.prepare = noting
    fisher_diagonal(
        bench, {**rows("image-classification", 10), "row": torch.arange(10)}, start_of(bench), batch_size=batch_size
    )
    assert sorted(seen) == list(range(10))


def test_names_and_shapes_are_those_of_the_adapters():
    bench = workbench()
    fisher = fisher_diagonal(bench, rows("image-classification", 3), start_of(bench))
    assert {name: tuple(tensor.shape) for name, tensor in fisher.items()} == {
        name: shape for name, shape in bench.layout.shapes.items() if name not in bench.layout.head
    }
    assert all(bool((tensor >= 0).all()) for tensor in fisher.values())


def test_nothing_of_the_probe_stays_even_after_an_error():
    bench = workbench(dropout=0.5)
    columns, params = rows("image-classification", 4), start_of(bench)
    before = torch.get_rng_state()
    first = fisher_diagonal(bench, columns, params)
    prepare, bench.prepare = bench.prepare, lambda batch: {"pixel_values": torch.zeros(1)}
    with pytest.raises(ValueError, match="unpack"):
        fisher_diagonal(bench, columns, params)
    bench.prepare = prepare
    assert not any(parameter.requires_grad for parameter in bench.model.parameters())
    assert not any(module._forward_hooks for module in bench.model.modules())
    again = fisher_diagonal(bench, columns, params)
    assert all(torch.equal(first[name], again[name]) for name in first)  # dropout is off
    assert torch.equal(before, torch.get_rng_state())


def test_scores_of_two_layers_by_hand():
    depth = {"b.0.q.lora_A": 0, "b.0.q.lora_B": 0, "b.1.q.lora_A": 1, "head": None}
    where = Layout("toy", 2, depth, {})
    fisher = {
        "b.0.q.lora_A": torch.tensor([[3.0, 4.0]]),  # norm 5
        "b.0.q.lora_B": torch.tensor([[5.0], [12.0]]),  # norm 13
        "b.1.q.lora_A": torch.tensor([[8.0, 6.0]]),  # norm 10
        "head": torch.tensor([100.0]),
    }
    assert layer_scores(fisher, where) == [24.0, 14.0]
    assert layer_scores(fisher, where, "mean") == [6.0, 7.0]
    assert layer_scores(fisher, where, "norm") == [18.0, 10.0]
    assert layer_scores(fisher, where, "squared-norm") == [194.0, 100.0]


def test_a_layer_without_adapters_scores_nothing():
    where = Layout("toy", 3, {"b.1.q.lora_A": 1}, {})
    for kind in ("trace", "mean", "norm", "squared-norm"):
        assert layer_scores({"b.1.q.lora_A": torch.ones(1, 1)}, where, kind) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("model", [VIT, LLAMA])
def test_scores_are_one_positive_number_for_every_block(model):
    bench = workbench(model)
    fisher = fisher_diagonal(bench, rows(task_of(model), 5), start_of(bench))
    scores = layer_scores(fisher, bench.layout)
    assert len(scores) == bench.layout.num_layers
    assert all(score > 0 for score in scores)
