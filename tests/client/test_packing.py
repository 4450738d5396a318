"""Packing: what is packed is what was there, and a model learns of it what it learns of the examples in rows apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_federation import LONGEST, TOKENS, rows, start_of, workbench

from fedquilt.client.fit import fit
from fedquilt.client.packing import best_fit, packed
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import IGNORED
from fedquilt.core.training import Training, num_steps

SEED = Rng(8)
WIDTH = 24
FAMILIES = ("llama", "gpt2", "qwen2", "gemma3")


def wide(columns):
    """The same rows with more padding, so that several fit into one."""
    more = WIDTH - LONGEST
    filled = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {name: torch.nn.functional.pad(columns[name], (0, more), value=value) for name, value in filled.items()}


def text(num_rows, whole=False):
    """Completions, or with ``whole`` texts of which every token is a label."""
    columns = wide(rows("causal-lm", num_rows))
    if whole:
        real = columns["attention_mask"].bool()
        columns["labels"] = torch.where(real, columns["input_ids"].long(), IGNORED)
    return columns


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40))
def test_every_example_is_in_one_row_and_no_two_rows_could_be_one(lengths):
    found = best_fit(lengths, 12)
    assert sorted(example for row in found for example in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[example] for example in row) for row in found)
    assert filled[-1] <= 12
    assert len(found) == 1 or filled[0] + filled[1] > 12


def test_the_worked_example_of_best_fit():
    assert best_fit([3, 6, 4, 1, 7], 10) == [[4, 0], [1, 2], [3]]
    assert best_fit([3, 6, 4, 0, 7], 10) == [[4, 0, 3], [1, 2]]


def test_two_examples_in_a_row_by_hand():
    made = packed(
        {
            "input_ids": torch.tensor([[5, 6, 0, 0, 0, 0], [7, 8, 9, 0, 0, 0]], dtype=torch.int32),
            "attention_mask": torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.int32),
            "labels": torch.tensor([[5, 6, -100, -100, -100, -100], [-100, 8, 9, -100, -100, -100]]),
        }
    )
    assert {name: column.tolist() for name, column in made.items()} == {
        "input_ids": [[7, 8, 9, 5, 6, 7]],
        "attention_mask": [[1, 1, 1, 1, 1, 0]],
        "labels": [[-100, 8, 9, -100, 6, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0]],
    }


def family(name, attention="sdpa"):
    layers = 6 if name == "gemma3" else 3  # the sixth is its first with attention to the whole row
    bench = workbench(f"tiny:{name}?layers={layers}&width=8", "causal-lm")
    bench.model.set_attn_implementation(attention)
    if name == "gemma3":
        assert {*bench.model.config.layer_types} == {"sliding_attention", "full_attention"}
        bench.model.config.sliding_window = 3
    return bench


def learned(bench, batch):
    """The mean loss over labels, and its gradients."""
    bench.load(start_of(bench))
    with bench.training(bench.layout.depth) as trained:
        logits, labels = bench.forward(batch)
        loss = bench.scoring.loss(logits, labels).sum() / bench.scoring.num_labels(labels)
        loss.backward()
        return loss.detach(), [tensor.grad for tensor in trained]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_rows_apart(name, attention, whole):
    bench, columns = family(name, attention), text(9, whole)
    together = packed(columns)
    assert len(together["labels"]) < 4
    loss, gradients = learned(bench, columns)
    packed_loss, packed_gradients = learned(bench, together)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=1e-6)
    for mine, expected in zip(packed_gradients, gradients, strict=True):
        assert bool(expected.any())
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_position_numbers_the_examples_would_be_mixed(name):
    """The oracle above can fail."""
    bench, columns = family(name), text(9)
    together = packed(columns)
    loss, _ = learned(bench, columns)
    joined, _ = learned(bench, {key: column for key, column in together.items() if key != "position_ids"})
    assert abs(float(joined - loss)) > 1e-4 * float(loss)


def test_a_pass_over_packed_rows_is_a_pass_over_the_examples():
    """With all rows in a step both ways make the same steps; the weight of the reply is the number of examples."""
    bench, columns = family("llama"), text(9)
    how = {"epochs": 2, "batch_size": 9, "optimizer": "sgd"}
    apart, together = (
        fit(bench, columns, start_of(bench), bench.layout.depth, Training(**how, packing=packing), 0.5, SEED)
        for packing in (False, True)
    )
    assert apart.num_examples == together.num_examples == 9
    assert together.metrics["steps"] == apart.metrics["steps"] == 2
    assert together.metrics["loss"] == pytest.approx(apart.metrics["loss"], rel=1e-4)
    assert together.metrics["accuracy"] == pytest.approx(apart.metrics["accuracy"])
    for name, tensor in apart.params.items():
        torch.testing.assert_close(together.params[name], tensor, rtol=1e-3, atol=1e-5)


def test_epochs_and_batches_count_packed_rows_and_the_draw_is_the_seeds():
    bench, columns = family("gpt2"), text(20)
    num_rows = len(packed(columns)["labels"])
    training = Training(epochs=3, batch_size=2, packing=True, gradient_checkpointing=True)
    first, second = (fit(bench, columns, start_of(bench), bench.layout.depth, training, 0.1, SEED) for _ in range(2))
    assert 2 < num_rows < 10
    assert first.metrics["steps"] == num_steps(num_rows, training) < num_steps(20, training)
    assert all(torch.equal(first.params[name], second.params[name]) for name in bench.layout.depth)


def test_examples_as_long_as_a_row_stay_as_they_are():
    ids = torch.randint(4, TOKENS, (3, 5), generator=torch.Generator().manual_seed(0))
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    made = packed(columns)
    assert torch.equal(made["input_ids"], ids)
    assert torch.equal(made["labels"][:, 1:], ids[:, 1:])
    assert made["labels"][:, 0].tolist() == [IGNORED] * 3  # which no token predicts
