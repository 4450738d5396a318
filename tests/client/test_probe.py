"""Fisher information by one batched backward, against one backward for every row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_federation import BERT, DATA, GPT2, LLAMA, TOKENS, VIT, rows, start_of, task_of, workbench
from torch import nn

from fedquilt.adapters.lora.inject import inject, layout, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.client import Workbench
from fedquilt.client.probe import fisher_diagonal, layer_scores
from fedquilt.client.task import Scoring
from fedquilt.core.types import Blocks, Layout
from fedquilt.models.hf_files import config_from, model_from
from fedquilt.models.layers import find_blocks
from fedquilt.models.text import prepare_text

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
@pytest.mark.parametrize("dora", [False, True])
def test_t8_fisher_is_the_mean_squared_gradient_of_every_row(model, task, objective, dora):
    """T8"""
    bench = workbench(model, task, rank=3, dora=dora)
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


# Modules that are called in unusual ways -----------------------------------------------------------------------------


class Block(nn.Module):
    """A linear module of a toy's block, called as ``how`` says."""

    def __init__(self, how: str, width: int, tokens: int) -> None:
        super().__init__()
        self.how, self.q = how, nn.Linear(width, width)
        self.register_buffer("places", torch.linspace(-1, 1, tokens * width).view(tokens, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (rows, tokens, width)
        if self.how == "twice":  # as a model whose blocks share their weights
            return torch.tanh(self.q(torch.tanh(self.q(x))))
        if self.how == "flat":
            return torch.tanh(self.q(x.flatten(0, 1)).view_as(x))
        if self.how == "tokens first":
            return torch.tanh(self.q(x.transpose(0, 1)).transpose(0, 1))
        if self.how == "shared":  # as DeBERTa's relative positions: the same for all rows, with and without a first 1
            return torch.tanh(self.q(x) + self.q(self.places) * x + self.q(self.places[None]))
        if self.how == "shared alone":
            return torch.tanh(x * self.q(self.places[None].expand(len(self.places), -1, -1)).mean(0))
        if self.how == "of no use":
            self.q(x)
            return x
        if self.how == "never":
            return x
        return torch.tanh(self.q(x))


class Toy(nn.Module):
    def __init__(self, hows: tuple[str, ...], width: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(how, width, tokens) for how in hows)
        self.score = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.layers:
            x = block(x)
        return SimpleNamespace(logits=self.score(x.mean(1)))


def toy_bench(*hows: str, width: int = 4, tokens: int = 5) -> Workbench:
    with DATA.child("toy", *hows).scope():
        return bench_of(Toy(hows, width, tokens), Blocks("layers", len(hows)), ("q",), lambda batch: {"x": batch["x"]})


def bench_of(model: nn.Module, blocks: Blocks, targets: tuple[str, ...], prepare: Any) -> Workbench:
    model.requires_grad_(False).eval()
    inject(model, blocks, LoraSettings(2, 4.0, targets=targets), targets, ())
    where = layout(model, blocks, "toy", ())
    return Workbench(
        model, blocks, where, trainable(model, where), prepare, scoring=Scoring(), device=torch.device("cpu")
    )


def toy_rows(num_rows: int, width: int = 4, tokens: int = 5) -> dict[str, torch.Tensor]:
    generator = DATA.child("toy rows").torch()
    x = torch.randn(num_rows, tokens, width, generator=generator)
    return {"x": x, "labels": torch.arange(num_rows) % 3}


IDLE = ("of no use", "never")


@pytest.mark.parametrize(
    "how", ["once", "twice", "flat", "tokens first", "shared", "shared alone", "of no use", "never"]
)
@pytest.mark.parametrize("batch_size", [1, 3, 5, 32])  # 5: as many rows as tokens
def test_all_calls_of_a_module_count_row_by_row_whatever_shape_they_have(how, batch_size):
    bench, columns = toy_bench("once", how, "once"), toy_rows(7)
    params = start_of(bench)
    expected = brute_force_of_any(bench, columns, params)
    assert any(bool(tensor.any()) for name, tensor in expected.items() if ".1." in name) == (how not in IDLE)
    assert_equal(fisher_diagonal(bench, columns, params, batch_size=batch_size), expected)


def brute_force_of_any(bench, columns, params) -> dict[str, torch.Tensor]:
    """As ``brute_force``, for adapters that may have nothing to do with the objective."""
    bench.load(params)
    leaves = {name: tensor.requires_grad_(True) for name, tensor in bench.parameters.items()}
    total = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()}
    for row in range(len(columns["labels"])):
        one = {name: column[row : row + 1] for name, column in columns.items()}
        logits, labels = bench.forward(one)
        value = logits.log_softmax(-1)[0, labels[0]]
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            total[name] += 0 if grad is None else grad.double() ** 2
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    return {name: sum_ / len(columns["labels"]) for name, sum_ in total.items()}


DEBERTA = {
    "vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pad_token_id": 0,
    "num_labels": 3, "initializer_range": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "targets", "more"),
    [
        ("deberta-v2", ("query_proj", "value_proj"), {"share_att_key": True, "position_buckets": 8}),
        ("deberta-v2", ("key_proj", "dense"), {"share_att_key": True, "position_buckets": 8}),
        ("deberta-v2", ("pos_key_proj", "pos_query_proj"), {}),
        ("deberta", ("pos_proj", "in_proj"), {}),
    ],
)
@pytest.mark.parametrize("num_rows", [4, 7])  # 7: as many rows as tokens
def test_projections_of_tokens_and_of_relative_positions(kind, targets, more, num_rows):
    with DATA.child(kind).scope():
        model = model_from(config_from({"model_type": kind, **DEBERTA, **more}), "sequence-classification")
    bench = bench_of(model, find_blocks(model), targets, prepare_text)
    columns = rows("sequence-classification", num_rows)
    columns["attention_mask"][0] = 1  # one row of full length, whatever is drawn
    params = start_of(bench)
    assert_equal(fisher_diagonal(bench, columns, params), brute_force_of_any(bench, columns, params), rtol=1e-4)
