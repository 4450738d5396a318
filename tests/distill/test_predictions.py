"""What models predict along answers: held to their logits, translated between tokenizers, bounded as messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_federation import GPT2, start_of, workbench
from torch.nn import functional

from fedquilt.client.texts import Language, Lent
from fedquilt.core.rng import Rng
from fedquilt.distill import predictions as p
from fedquilt.distill.logits import UNKNOWN, TopK, top_k_divergence
from fedquilt.distill.paths import path_columns
from fedquilt.distill.predictions import Tokenized, better, in_tokens_of, merged, predicted, tokenized
from fedquilt.distill.soft import Mixture, Shown, mixed_loss

PROMPTS, ANSWERS = ["ab", "c"], ["def", "gh"]
END = 2


def lent(cut: dict[str, list[str]] | None = None) -> Lent:
    """A random model that reads a letter as the token of its number; the end token is number 2."""
    bench = workbench(GPT2, "causal-lm")
    bench.load(start_of(bench))

    def ids(text: str) -> list[int]:
        return [ord(letter) - 90 for letter in text]

    def columns(prompts: Any, answers: Any) -> Any:
        return path_columns([ids(one) for one in prompts], [[*ids(one), END] for one in answers], pad=0)

    def decode(tokens: Any) -> str:
        return "".join(chr(token + 90) for token in tokens if token not in (0, END))

    words = tuple("" if number == END else chr(number + 90) for number in range(260))
    return Lent(bench, columns, Language(lambda table: {}, decode, lambda: words), 1)


def test_predictions_are_the_models_likeliest_tokens_and_losses() -> None:
    model = lent()
    found = predicted(model, PROMPTS, ANSWERS, k=3, positions=3)
    assert found["tokens"].shape == (2, 3, 3)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        columns = model.columns([prompt], [answer])
        with torch.no_grad():
            logits, labels = model.bench.forward(columns)
        start, size = len(prompt), len(answer) + 1
        mine = logits[0, start - 1 : start - 1 + size]
        expected = functional.cross_entropy(mine, labels[0, start:])
        torch.testing.assert_close(found["losses"][row], expected)
        kept = min(size, 3)
        top = mine.log_softmax(-1).topk(3)
        assert found["tokens"][row, :kept].tolist() == top.indices[:kept].tolist()
        torch.testing.assert_close(found["log_probs"][row, :kept], top.values[:kept])
        assert (found["tokens"][row, kept:] == UNKNOWN).all()


def test_equal_tokenizers_change_nothing() -> None:
    model = lent()
    found, cut = predicted(model, PROMPTS, ANSWERS, k=3, positions=4), tokenized(model, PROMPTS, ANSWERS)
    assert cut.texts == ANSWERS
    assert cut.places == [[0, 1, 2, 3], [0, 1, 2]]
    same = in_tokens_of(cut, cut, found)
    for name in ("tokens", "log_probs", "losses"):
        assert torch.equal(same[name], found[name])  # type: ignore[literal-required]


def of(tokens: Any, log_probs: Any, losses: Any) -> p.Predictions:
    return p.Predictions(
        tokens=torch.tensor(tokens, dtype=torch.int32), log_probs=torch.tensor(log_probs), losses=torch.tensor(losses)
    )


def test_unlike_tokenizers_meet_where_both_cut_the_text() -> None:
    """The teacher writes 12|+|3, the student 1|2|+3; both begin a token at 0 and at 2, and end at 4."""
    teacher = Tokenized(("12", "+", "3", "1", ""), ["12+3"], [[0, 2, 3, 4]])
    student = Tokenized(("1", "2", "+3", "", "+"), ["12+3"], [[0, 1, 2, 4]])
    found = of([[[0, 3], [1, 2], [2, 1], [4, 0]]], [[[-0.1, -2.0], [-0.2, -3.0], [-0.3, -4.0], [-0.4, -5.0]]], [0.7])
    made = in_tokens_of(student, teacher, found)
    assert made["tokens"].tolist() == [[[-1, 0], [-1, -1], [4, -1], [3, -1]]]
    torch.testing.assert_close(made["log_probs"], torch.tensor([[[0, -2.0], [0, 0], [-0.2, 0], [-0.4, 0]]]))
    assert made["losses"].tolist() == found["losses"].tolist()


def test_texts_that_two_models_read_unlike_have_only_their_start_in_common() -> None:
    teacher = Tokenized(("a", "b", ""), ["aab"], [[0, 1, 2, 3]])
    student = Tokenized(("a", "b", ""), ["aba"], [[0, 1, 2, 3]])
    found = of([[[0], [0], [1], [2]]], [[[-0.1], [-0.2], [-0.3], [-0.4]]], [1.0])
    assert in_tokens_of(student, teacher, found)["tokens"].tolist() == [[[0], [0], [-1], [-1]]]


def test_without_any_common_token_nothing_is_learned_and_nothing_is_nan() -> None:
    model = lent()
    found = predicted(model, PROMPTS, ANSWERS, k=3, positions=4)
    cut = tokenized(model, PROMPTS, ANSWERS)
    none = in_tokens_of(cut._replace(vocabulary=("never",)), cut, found)
    assert (none["tokens"] == UNKNOWN).all()
    columns = model.columns(PROMPTS, ANSWERS)
    with model.bench.training(model.bench.layout.depth):
        loss = mixed_loss(model.bench.forward, Shown(columns, none), torch.arange(2), Mixture(0.0, 1.0))
        assert loss.item() == 0
        loss.backward()
        slopes = [tensor.grad for tensor in model.bench.parameters.values() if tensor.grad is not None]
        assert slopes
        assert all(not slope.any() for slope in slopes)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fedmkt_objective_by_hand(temperature: float) -> None:
    """0.9 of the answers' mean cross-entropy and 0.1 T^2 of the mean divergence over the known positions."""
    model, teacher = lent(), lent()
    with Rng(3).scope():
        teacher.bench.load({name: torch.randn(t.shape) for name, t in start_of(teacher.bench).items()})
    theirs = predicted(teacher, PROMPTS, ANSWERS, k=5, positions=2, temperature=temperature)
    mine = predicted(model, PROMPTS, ANSWERS, k=1, positions=2)
    columns = model.columns(PROMPTS, ANSWERS)
    found = mixed_loss(model.bench.forward, Shown(columns, theirs), torch.arange(2), Mixture(temperature=temperature))
    apart = []
    for row, start in enumerate((2, 1)):
        logits, _ = model.bench.forward({name: column[row : row + 1] for name, column in columns.items()})
        own = logits[0, start - 1 : start + 1] / temperature
        apart.append(top_k_divergence(own, TopK(theirs["tokens"][row].long(), theirs["log_probs"][row])))
    expected = 0.9 * mine["losses"].mean() + 0.1 * temperature**2 * torch.cat(apart).mean()
    torch.testing.assert_close(found, expected)


def test_the_party_with_the_greater_probability_is_better() -> None:
    one, other = (
        of([[[1]], [[2]]], [[[-0.1]], [[-0.2]]], [0.5, 0.5]),
        of([[[3]], [[4]]], [[[-1.0]], [[-2.0]]], [0.4, 0.5]),
    )
    wins = better(other["losses"], one["losses"])
    assert wins.tolist() == [True, False]
    best = merged(one, other, wins)
    assert best["tokens"].flatten().tolist() == [3, 2]
    torch.testing.assert_close(best["losses"], torch.tensor([0.4, 0.5]))


def test_a_message_with_a_mass_above_one_is_scaled_down() -> None:
    params = p.prediction_params(of([[[1, 2, -1]]], [[[0.0, 0.0, 0.0]]], [0.1]), "own")
    read = p.predictions_of(params, "own")
    torch.testing.assert_close(read["log_probs"].exp()[0, 0, :2].sum(), torch.tensor(1.0))
    fine = of([[[1, 2]]], [[[-1.0, -2.0]]], [0.1])
    assert torch.equal(p.predictions_of(p.prediction_params(fine, "own"), "own")["log_probs"], fine["log_probs"])
    assert set(p.prediction_ranges(9, "own")) == set(params)


def test_on_the_meta_device_there_are_shapes_only() -> None:
    planned: Any = SimpleNamespace(planned=True, language=None)
    assert predicted(planned, PROMPTS, ANSWERS, k=3, positions=5)["tokens"].shape == (2, 5, 3)
    assert tokenized(planned, PROMPTS, ANSWERS).places == [[], []]
