"""Clients side by side, unlike in every way that they may be, give what they give in turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_federation import BERT, GPT2, LLAMA, VIT, small, start_of

from fedquilt.client.job import Job, alone
from fedquilt.client.stacked.kinds import alike, refusal
from fedquilt.client.stacked.together import fitted_together
from fedquilt.client.stacked.trial import verdict_on
from fedquilt.core.errors import TrainingError
from fedquilt.core.factors import cut
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training
from fedquilt.core.worker import Fitted, Phase

SEED = Rng(9)
PLAIN = Training(steps=4, epochs=None, batch_size=4, learning_rate=0.05)


def jobs_of(model=VIT, training=PLAIN, *, budgets=(1, 2, 3), sizes=(5, 9, 6), ranks=None, penalty=None, **more):
    """Jobs of three clients with unlike rows and layers, from unlike tensors."""
    scene = small(model, budgets=budgets, sizes=sizes, training=training, rank=4, **more)
    found = []
    for id, client in scene.clients.items():
        start = {name: tensor + 0.01 * id for name, tensor in start_of(scene.bench).items()}
        layers = range(scene.layout.num_layers - client.profile.budget.layers, scene.layout.num_layers)
        names = frozenset({*scene.layout.names(layers), *scene.layout.head})
        own = (Phase(names, penalties=() if penalty is None else (penalty,)),)
        params = cut(start, None if ranks is None else ranks[id])
        rate = client.training.learning_rate
        found.append(Job(scene.bench, client.train, params, own, client.training, rate, SEED.child(id)))
    return found


def assert_as_alone(jobs, tolerance=2e-5):
    done = fitted_together(jobs)
    assert not any(one.alone for one in done)
    for job, one in zip(jobs, done, strict=True):
        expected = alone(job)
        assert isinstance(one.outcome, Fitted)
        assert one.outcome.params.keys() == expected.params.keys()
        assert one.outcome.num_examples == expected.num_examples
        assert one.outcome.metrics == pytest.approx(expected.metrics, rel=1e-4)
        for name, tensor in expected.params.items():
            assert torch.allclose(one.outcome.params[name], tensor, atol=tolerance), name
            assert not one.outcome.params[name].requires_grad


@pytest.mark.parametrize(
    "training",
    [
        replace(PLAIN, steps=None, epochs=3),
        replace(PLAIN, weight_decay=0.1),
        replace(PLAIN, clip_norm=0.2),
        replace(PLAIN, accumulation=2, steps=3),
        replace(PLAIN, optimizer="sgd", momentum=0.9, weight_decay=0.1, steps=None, epochs=2),
    ],
    ids=["unequal-steps", "weight-decay", "clipped", "accumulated", "momentum"],
)
@pytest.mark.parametrize("model", [VIT, LLAMA], ids=["images", "language"])
def test_every_way_to_train(model, training):
    assert_as_alone(jobs_of(model, training))


@pytest.mark.parametrize("model", [VIT, BERT, GPT2, LLAMA], ids=["vit", "bert", "gpt2", "llama"])
def test_ranks_of_their_own(model):
    jobs = jobs_of(model, replace(PLAIN, steps=None, epochs=3), ranks=(2, 4, 3))
    assert_as_alone(jobs)


@pytest.mark.parametrize("model", [VIT, GPT2], ids=["vit", "gpt2"])
def test_magnitudes_of_their_own(model):
    assert_as_alone(jobs_of(model, replace(PLAIN, clip_norm=0.5), ranks=(2, 4, 3), dora=True, every=True))


def test_packed_texts():
    assert_as_alone(jobs_of(LLAMA, replace(PLAIN, packing=True, batch_size=2)))


def test_the_models_own_dropout_and_that_of_attention():
    """Each client's stream drops what it would drop alone, though its rows and texts are filled up."""
    jobs = jobs_of(BERT, replace(PLAIN, batch_size=3))
    for module in jobs[0].bench.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout") or hasattr(module, "dropout_prob"):
            module.attention_dropout = module.dropout_prob = 0.3
    assert verdict_on(jobs[0]).drops
    assert_as_alone(jobs)


def test_penalties_see_each_clients_own_tensors():
    def penalty(trained, start):
        assert all(tensor.shape == start[name].shape for name, tensor in trained.items())
        return sum((tensor - 2 * start[name]).square().sum() for name, tensor in trained.items())

    assert_as_alone(jobs_of(ranks=(2, 4, 3), penalty=penalty))


def test_a_client_that_fails_is_told_as_alone_and_leaves_the_others_as_they_are():
    jobs = jobs_of(sizes=(5, 9, 6))
    broken = {name: torch.full_like(t, torch.inf) if "classifier" in name else t for name, t in jobs[1].params.items()}
    jobs[1] = replace(jobs[1], params=broken)
    with pytest.raises(TrainingError) as failed:
        alone(jobs[1])
    first, second, third = fitted_together(jobs)
    assert str(second.outcome) == str(failed.value) == "loss is nan at step 1"
    for job, one in ((jobs[0], first), (jobs[2], third)):
        for name, tensor in alone(job).params.items():
            assert torch.allclose(one.outcome.params[name], tensor, atol=2e-5)


def test_afterwards_the_workbench_holds_tensors_of_one_client():
    jobs = jobs_of(ranks=(2, 4, 3))
    bench = jobs[0].bench
    before = alone(jobs[0])
    fitted_together(jobs)
    assert all(not p.requires_grad and p.grad is None for p in bench.parameters.values())
    assert all(adapter.scales is None and adapter.core is None for adapter in bench.adapters.values())
    assert "forward" not in vars(bench.model.classifier)
    after = alone(jobs[0])
    assert all(torch.equal(after.params[name], tensor) for name, tensor in before.params.items())


def test_clients_of_unlike_bases_or_settings_are_not_side_by_side():
    jobs = jobs_of()
    module = next(iter(jobs[0].bench.adapters))
    shift = torch.ones(8, 8)
    shifted = [replace(job, params={**job.params, f"{module}.shift": shift.clone()}) for job in jobs[1:]]
    faster = replace(jobs[0], learning_rate=1.0)
    assert alike([jobs[0], *shifted, faster]) == [[0], [1, 2], [3]]
    done = fitted_together([jobs[0], *shifted])
    assert [one.alone for one in done] == ["no other client can be trained beside it", "", ""]
    for job, one in zip(shifted, done[1:], strict=True):
        for name, tensor in alone(job).params.items():
            assert torch.allclose(one.outcome.params[name], tensor, atol=2e-5)


def test_what_is_refused():
    (job, *_) = jobs_of()
    assert refusal(job) == ""
    assert refusal(replace(job, blocks=(1, 2))) == "blocks of its model are left out"
    assert refusal(replace(job, runs_model=True)) == "a term of its loss runs the model"
    again = replace(job, training=replace(PLAIN, gradient_checkpointing=True))
    assert refusal(again) == "training.gradient_checkpointing = true"
    empty = {name: column[:0] for name, column in job.columns.items()}
    (failed,) = fitted_together([replace(job, columns=empty)])
    assert str(failed.outcome) == "the client has no training rows"


def test_a_model_that_mixes_rows_or_draws_more_than_dropout_is_refused():
    (job, *_) = jobs_of()
    model = job.bench.model

    def mixed(**inputs):
        made = type(model).forward(model, **inputs)
        made.logits = made.logits + made.logits.mean(0)
        return made

    def noisy(**inputs):
        made = type(model).forward(model, **inputs)
        if model.training:
            made.logits = made.logits + torch.rand(())
        return made

    model.forward = mixed
    assert verdict_on(job).refusal == "the model does not keep the rows of several clients apart"
    (other, *_) = jobs_of()
    model = other.bench.model
    model.forward = noisy
    assert verdict_on(other).refusal == "the model draws random numbers besides dropout"
