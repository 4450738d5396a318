"""Evaluation: numbers by hand, and no dependence on the batch size."""

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, rows, start_of, task_of, workbench

from fedquilt.client.score import evaluation


@pytest.mark.parametrize("model", [VIT, LLAMA, BERT, GPT2])
def test_the_batch_size_does_not_matter(model):
    bench = workbench(model)
    columns, params = rows(task_of(model), 11), start_of(bench)
    whole = evaluation(bench, columns, params, batch_size=11)
    assert whole["examples"] == 11
    for batch_size in (1, 4, 256):
        scores = evaluation(bench, columns, params, batch_size=batch_size)
        assert scores == pytest.approx(whole, rel=1e-5)
        assert scores["accuracy"] == whole["accuracy"]


def test_accuracy_and_loss_of_a_classifier_are_means_over_rows():
    bench = workbench()
    columns, params = rows("image-classification", 8), start_of(bench)
    bench.load(params)
    with torch.no_grad():
        log_p = bench.forward(columns)[0].log_softmax(-1)
    labels = columns["labels"]
    scores = evaluation(bench, columns, params, batch_size=3)
    assert scores["accuracy"] == (log_p.argmax(1) == labels).double().mean().item()
    assert scores["loss"] == pytest.approx(-log_p[torch.arange(8), labels].mean().item(), rel=1e-6)


def test_accuracy_and_loss_of_a_language_model_are_means_over_labelled_tokens():
    bench = workbench(LLAMA)
    columns, params = rows("causal-lm", 6), start_of(bench)
    bench.load(params)
    hits, losses = [], []
    with torch.no_grad():
        logits, labels = bench.forward(columns)
    for row in range(6):
        for token in range(1, labels.shape[1]):
            if labels[row, token] != -100:
                guess = logits[row, token - 1]
                hits.append(float(guess.argmax() == labels[row, token]))
                losses.append(-guess.log_softmax(0)[labels[row, token]].item())
    scores = evaluation(bench, columns, params, batch_size=4)
    assert scores["accuracy"] == sum(hits) / len(hits)
    assert scores["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert scores["examples"] == 6


def test_evaluation_keeps_no_graph_and_draws_nothing():
    bench = workbench(dropout=0.5)
    seen = []
    bench.model.register_forward_hook(lambda _model, _args, output: seen.append(output.logits.requires_grad))
    before = torch.get_rng_state()
    first = evaluation(bench, rows("image-classification", 5), start_of(bench))
    assert evaluation(bench, rows("image-classification", 5), start_of(bench)) == first  # dropout is off
    assert torch.equal(before, torch.get_rng_state())
    assert seen == [False, False]
