"""Losses and accuracies, against torch, transformers and numbers by hand."""

import pytest
import torch
from small_federation import GPT2, LLAMA, rows, start_of, workbench

from fedquilt.client.task import scoring_of

CLASSES, NEXT_TOKENS = scoring_of("image-classification"), scoring_of("causal-lm")

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])
# two sentences of four tokens over three words; the first token is never predicted
SENTENCES = torch.arange(24.0).view(2, 4, 3).sin()
WORDS = torch.tensor([[2, -100, 1, 0], [0, 2, -100, -100]])


def test_a_classifiers_loss_is_minus_the_log_softmax_of_the_label():
    expected = [-LOGITS[n].log_softmax(0)[label] for n, label in enumerate(LABELS)]
    torch.testing.assert_close(CLASSES.loss(LOGITS, LABELS), torch.stack(expected))


def test_a_language_models_loss_is_the_sum_over_its_labelled_next_tokens():
    log_p = SENTENCES.log_softmax(-1)
    expected = torch.stack([-(log_p[0, 1, 1] + log_p[0, 2, 0]), -log_p[1, 0, 2]])
    torch.testing.assert_close(NEXT_TOKENS.loss(SENTENCES, WORDS), expected)
    torch.testing.assert_close(
        NEXT_TOKENS.label_logit(SENTENCES, WORDS),
        torch.stack([SENTENCES[0, 1, 1] + SENTENCES[0, 2, 0], SENTENCES[1, 0, 2]]),
    )
    assert NEXT_TOKENS.num_labels(WORDS) == 3


@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_a_language_models_mean_loss_is_the_one_transformers_computes(model):
    bench = workbench(model, "causal-lm")
    bench.load(start_of(bench))
    batch = rows("causal-lm", 9)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    logits, labels = bench.forward(batch)
    mean = bench.scoring.loss(logits, labels).sum() / bench.scoring.num_labels(labels)
    theirs = bench.model(**bench.prepare(batch), labels=labels).loss
    torch.testing.assert_close(mean, theirs, rtol=1e-6, atol=0)


def test_the_label_logit_is_raw():
    assert CLASSES.label_logit(LOGITS, LABELS).tolist() == [2.0, 0.0]


def test_hits_count_only_labels_that_count():
    assert CLASSES.num_labels(LABELS) == 2
    assert CLASSES.num_correct(LOGITS, LABELS) == 1
    right = torch.zeros(2, 4, 3)
    right[0, 1, 1] = right[0, 2, 0] = 1.0
    right[1, 0, 1] = 1.0  # wrong; the other places have no label, whatever is predicted there
    assert NEXT_TOKENS.num_correct(right, WORDS) == 2


def test_no_label_at_all_costs_nothing():
    words = torch.full((2, 4), -100)
    assert NEXT_TOKENS.loss(SENTENCES, words).tolist() == [0.0, 0.0]
    assert NEXT_TOKENS.num_labels(words) == 0
    assert NEXT_TOKENS.num_correct(SENTENCES, words) == 0


def test_half_precision_logits_are_scored_in_float32():
    loss = CLASSES.loss(LOGITS.bfloat16(), LABELS)
    assert loss.dtype == torch.float32
    assert CLASSES.label_logit(LOGITS.bfloat16(), LABELS).dtype == torch.float32
