"""Paths as rows, and their joint log-probabilities: held to a model that decodes step by step with a cache."""

import pytest
import torch
from small_federation import GPT2, LLAMA, start_of, workbench

from fedquilt.core.rng import Rng
from fedquilt.core.tasks import IGNORED
from fedquilt.distill.paths import Likelihood, likelihood, likelihoods, path_columns, readings

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
PATHS = [[20, 21, 2], [22, 23, 24, 25, 26, 2], [2], [27, 28, 29, 2]]


@pytest.fixture(params=[LLAMA, GPT2])
def bench(request):
    bench = workbench(request.param, "causal-lm")
    bench.load(start_of(bench))
    return bench


def stepwise(model, prompt, path):
    """The sum of the conditionals of an incremental decoding that is forced along the path."""
    total, past, ids = 0.0, None, torch.tensor([prompt])
    for token in path:
        with torch.no_grad():
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
        total += float(out.logits[0, -1].float().log_softmax(-1)[token])
        past, ids = out.past_key_values, torch.tensor([[token]])
    return total


def test_lada_1_the_joint_log_probability_is_the_sum_of_the_steps(bench):
    found = likelihoods(bench, path_columns(PROMPTS, PATHS, pad=0), batch_size=3)
    expected = [stepwise(bench.model, prompt, path) for prompt, path in zip(PROMPTS, PATHS, strict=True)]
    torch.testing.assert_close(found.total, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert found.tokens.tolist() == [3, 6, 1, 4]
    torch.testing.assert_close(found.mean, found.total / torch.tensor([3, 6, 1, 4]))


def test_lada_1_company_and_padding_change_nothing(bench):
    whole = readings(bench, path_columns(PROMPTS, PATHS, pad=0))
    for row in range(4):
        alone = path_columns(PROMPTS[row : row + 1], PATHS[row : row + 1], pad=77)
        wide = {name: torch.nn.functional.pad(column, (0, 5)) for name, column in alone.items()}
        wide["labels"][:, -5:] = IGNORED
        for columns in (alone, wide):
            found = readings(bench, columns)
            torch.testing.assert_close(found.likelihood.total[0], whole.likelihood.total[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.path[0], whole.path[row], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.prompt[0], whole.prompt[row], atol=1e-5, rtol=1e-4)


def test_states_are_the_means_of_what_the_last_block_gives():
    bench = workbench(GPT2, "causal-lm")
    bench.load(start_of(bench))
    found = readings(bench, path_columns(PROMPTS, PATHS, pad=0))
    assert not bench.model.transformer.h[-1]._forward_hooks
    for row, (prompt, path) in enumerate(zip(PROMPTS, PATHS, strict=True)):
        with torch.no_grad():
            out = bench.model(input_ids=torch.tensor([prompt + path]), output_hidden_states=True)
            # transformers gives the last states behind the final normalisation
            ours = bench.model.transformer.ln_f(found.path[row])
        states = out.hidden_states[-2]
        block = bench.model.transformer.h[-1](states)
        block = block[0] if isinstance(block, tuple) else block
        torch.testing.assert_close(found.prompt[row], block[0, : len(prompt)].mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.path[row], block[0, len(prompt) :].mean(0), atol=1e-5, rtol=1e-4)
        if len(path) == 1:
            torch.testing.assert_close(ours, out.hidden_states[-1][0, -1], atol=1e-5, rtol=1e-4)


def test_the_likelihood_by_hand_and_its_gradient():
    logits = torch.zeros(1, 4, 4, requires_grad=True)  # every token has probability 1/4
    found = likelihood(logits, torch.tensor([[IGNORED, 1, 2, IGNORED]]))
    torch.testing.assert_close(found.total, 2 * torch.tensor([0.25]).log())
    assert found.tokens.tolist() == [2]
    found.total.sum().backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([-0.25, 0.75, -0.25, -0.25]))
    assert logits.grad[0, 2:].abs().sum() == 0


def test_rows_of_paths_and_their_truncation():
    columns = path_columns([[1, 2], [3]], [[4, 5, 6], [7]], pad=9)
    assert columns["input_ids"].tolist() == [[1, 2, 4, 5, 6], [3, 7, 9, 9, 9]]
    assert columns["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert columns["labels"].tolist() == [[IGNORED, IGNORED, 4, 5, 6], [IGNORED, 7, IGNORED, IGNORED, IGNORED]]
    short = path_columns([[1, 2, 3]], [[4, 5, 6]], pad=0, longest=4)
    assert short["input_ids"].tolist() == [[3, 4, 5, 6]]
    assert path_columns([[1, 2, 3]], [[4, 5, 6]], pad=0, longest=2)["input_ids"].tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="no tokens"):
        path_columns([[]], [[1]], pad=0)


def test_no_paths_and_empty_paths_are_no_error(bench):
    assert len(likelihoods(bench, path_columns([], [], pad=0)).total) == 0
    found = likelihoods(bench, path_columns([[5, 6], [7]], [[], [8]], pad=0))
    assert found.mean[0] == 0
    assert found.tokens.tolist() == [0, 1]


def test_likelihoods_can_be_picked():
    own = Likelihood(torch.randn(4, generator=Rng(0).torch()), torch.arange(4))
    assert own.at(torch.tensor([2, 0])).tokens.tolist() == [2, 0]
    assert own.mean[0] == own.total[0]
