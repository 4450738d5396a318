"""Penalties in local training: their gradients by autograd and by hand, and which tensors they hold."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import VIT, rows, small, start_of, workbench
from torch.nn import functional

from fedquilt.aggregate.lowrank.segment import tail
from fedquilt.client.fit import batches, fit
from fedquilt.client.penalty import proximal, with_proximal
from fedquilt.core.errors import TrainingError
from fedquilt.core.factors import Product
from fedquilt.core.loop import perform
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training
from fedquilt.core.types import Order, Turn
from fedquilt.core.wrap import with_local
from fedquilt.methods import METHODS

SEED = Rng(23).child("penalty")
STEPS = Training(steps=3, epochs=None, batch_size=4, optimizer="sgd")
ROWS = rows("image-classification", 10)


def names_of(bench, layers=range(4)):
    return [*bench.layout.names(layers), *bench.layout.head]


def fitted(training=STEPS, *, penalties=(), layers=range(4), start=None, dropout=0.1):
    bench = workbench(VIT, dropout=dropout)
    start = start or start_of(bench)
    return fit(bench, ROWS, start, names_of(bench, layers), training, 0.1, SEED, penalties=penalties)


def pull(mu, names):
    return lambda trained, start: proximal(trained, start, names, mu)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# The proximal term ------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**16), st.floats(0.001, 10))
def test_the_proximal_term_and_its_gradient_are_those_by_hand(seed, mu):
    generator = SEED.child(seed).torch()
    start = {name: torch.randn(3, 2, generator=generator, dtype=torch.float64) for name in "abc"}
    moved = {name: start[name] + torch.randn(3, 2, generator=generator, dtype=torch.float64) for name in "ab"}
    trained = {name: tensor.clone().requires_grad_() for name, tensor in moved.items()}
    value = proximal(trained, start, {"a", "c"}, mu)
    value.backward()
    expected = (
        mu / 2 * sum((float(x) - float(y)) ** 2 for x, y in zip(moved["a"].ravel(), start["a"].ravel(), strict=True))
    )
    assert math.isclose(float(value.detach()), expected, rel_tol=1e-12)
    torch.testing.assert_close(trained["a"].grad, mu * (moved["a"] - start["a"]))
    assert trained["b"].grad is None  # not among the names


def test_of_nothing_it_is_zero():
    assert float(proximal({"a": torch.ones(2)}, {"a": torch.zeros(2)}, (), 3.0)) == 0


def test_training_with_it_is_the_loop_that_adds_it_to_the_loss_by_hand():
    bench, mu = workbench(VIT), 0.7
    start, names = start_of(bench), names_of(workbench(VIT))
    parameters = dict(bench.model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            parameters[name].copy_(value)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.SGD([parameters[name] for name in names], lr=0.1)
    bench.model.train()
    for chosen in batches(len(ROWS["labels"]), STEPS, SEED.child("batches")):
        optimizer.zero_grad()
        batch = {name: column[chosen] for name, column in ROWS.items()}
        loss = functional.cross_entropy(bench.model(**bench.prepare(batch)).logits, batch["labels"])
        distance = sum((parameters[name] - start[name]).pow(2).sum() for name in names)
        (loss + mu / 2 * distance).backward()
        optimizer.step()
    done = fitted(penalties=[pull(mu, names)], dropout=0.0)
    for name in names:
        torch.testing.assert_close(done.params[name], parameters[name].detach(), rtol=1e-5, atol=1e-6)
    assert not same(done.params, fitted(dropout=0.0).params)


def test_a_larger_mu_keeps_nearer_and_the_loss_told_is_the_datas():
    start = start_of(workbench(VIT))
    moved = {}
    for mu in (0.0, 1.0, 5.0):
        done = fitted(replace(STEPS, steps=8), penalties=[pull(mu, set(start))] if mu else ())
        moved[mu] = sum(float((done.params[name] - start[name]).square().sum()) for name in done.params)
    assert 0 < moved[5.0] < moved[1.0] < moved[0.0]
    once = replace(STEPS, steps=1)  # in its first step a client is where it began
    huge = fitted(once, penalties=[lambda trained, start: 0 * next(iter(trained.values())).sum() + 1e6])
    assert huge.metrics == fitted(once).metrics


def test_it_is_added_once_a_step_however_many_passes_the_step_has():
    calls = []

    def counted(trained, start):
        calls.append(sorted(trained))
        return proximal(trained, start, set(trained), 0.7)

    whole = fitted(replace(STEPS, batch_size=8), penalties=[counted], dropout=0.0)
    parts = fitted(replace(STEPS, batch_size=2, accumulation=4), penalties=[counted], dropout=0.0)
    assert len(calls) == 6
    assert calls[0] == sorted(whole.params)
    for name, tensor in whole.params.items():
        torch.testing.assert_close(parts.params[name], tensor, rtol=1e-5, atol=1e-6)


def test_two_penalties_add_up():
    names = set(names_of(workbench(VIT)))
    twice, once = fitted(penalties=[pull(0.3, names), pull(0.4, names)]), fitted(penalties=[pull(0.7, names)])
    for name, tensor in once.params.items():
        torch.testing.assert_close(twice.params[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_penalty_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(TrainingError, match=r"penalty is nan at step 1"):
        fitted(penalties=[lambda trained, start: torch.tensor(math.nan)])


def test_a_constant_changes_no_bit():
    assert same(fitted(penalties=[lambda trained, start: torch.ones(())]).params, fitted().params)


def test_hetloras_tail_shrinks_what_pruning_would_cut():
    """The penalty that HETLoRA's clients add, made of ``aggregate.lowrank.segment.tail``."""
    start = start_of(workbench(VIT))
    modules = sorted({name.rpartition(".")[0] for name in start if name.endswith("lora_A")})

    def cut_off(tensors):
        return sum(tail(Product(tensors[f"{m}.lora_B"], tensors[f"{m}.lora_A"]), 1) for m in modules)

    plain = fitted(replace(STEPS, steps=6))
    held = fitted(replace(STEPS, steps=6), penalties=[lambda trained, start: 0.5 * cut_off(trained)])
    assert float(cut_off(held.params)) < float(cut_off(plain.params))
    assert float(cut_off(held.params)) < float(cut_off(start))


# The wrapper ------------------------------------------------------------


def answers(method, scene, memory=None, round=0):
    (fit,) = method.exchanges
    turn = Turn(round, scene.federation.profiles, SEED.child("round", round))
    orders = fit.ask(method.init(SEED.child("init")), turn)
    orders = {id: replace(order, round=round, rng=SEED.child(id)) for id, order in orders.items()}
    return {id: perform(fit, scene.clients[id], id, order, memory or {}) for id, order in orders.items()}


def made(name="fedit", **more):
    scene = small(training=Training(steps=3, epochs=None, batch_size=4, learning_rate=0.05))
    return METHODS[name](scene.federation, **more), scene


def test_with_mu_zero_it_is_the_method_itself_and_with_more_another_reply():
    method, scene = made()
    assert with_proximal(method, 0.0) is method
    plain, held = answers(method, scene), answers(with_proximal(method, 1.0), scene)
    assert plain.keys() == held.keys() == set(scene.clients)
    for id in plain:
        assert plain[id][0].params.keys() == held[id][0].params.keys()
        assert not same(plain[id][0].params, held[id][0].params)
    tiny = answers(with_proximal(method, 1e-30), scene)
    assert all(same(plain[id][0].params, tiny[id][0].params) for id in plain)  # no other draw is moved


@pytest.mark.parametrize("mu", [-0.1, math.inf, math.nan])
def test_a_mu_out_of_range_is_refused(mu):
    with pytest.raises(ValueError, match=r"mu is .* at least 0 and finite"):
        with_proximal(made()[0], mu)


def test_what_the_client_keeps_as_its_own_is_not_held():
    """All tensors are the client's own: the penalty holds none, and training is as ever, to the bit."""
    method, scene = made("local-only")
    plain, held = answers(method, scene), answers(with_proximal(method, 5.0), scene)
    assert all(same(plain[id][1]["params"], held[id][1]["params"]) for id in plain)
    assert all(plain[id][1]["params"] for id in plain)
    layout = scene.layout
    body = with_local(with_proximal(made()[0], 5.0), layout.head)
    seen = []

    class Watching:
        def __init__(self, client):
            self.client = client

        def __getattr__(self, name):
            return getattr(self.client, name)

        def penalised(self, penalty):
            def noted(trained, start):
                value = penalty(trained, start)
                grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
                seen.append({name for name, grad in zip(trained, grads, strict=True) if grad is not None})
                return penalty(trained, start)

            return self.client.penalised(noted)

    clients = {id: Watching(client) for id, client in scene.clients.items()}
    answers(body, scene._replace(clients=clients))
    assert seen
    assert all(names and not names & layout.head for names in seen)


def test_what_is_asked_for_is_held_though_it_was_not_sent():
    """As adapters that the client draws itself: they go back, so they are held near where they began."""
    method, scene = made()
    (fit,) = method.exchanges

    def ask(state, turn):
        return {id: replace(order, params={}) for id, order in fit.ask(state, turn).items()}

    drawn = method._replace(exchanges=(fit._replace(ask=ask, expects=lambda order: scene.clients[0].initial),))
    silent = method._replace(exchanges=(fit._replace(ask=ask, expects=None),))
    plain = answers(drawn, scene)
    for id, (reply, _) in answers(with_proximal(drawn, 1.0), scene).items():
        assert not same(reply.params, plain[id][0].params)
    for id, (reply, _) in answers(with_proximal(silent, 1.0), scene).items():
        assert same(reply.params, plain[id][0].params)


def test_orders_views_and_merges_are_the_methods_own():
    method, _ = made()
    held = with_proximal(method, 0.1)
    assert (held.name, held.init, held.view) == (method.name, method.init, method.view)
    assert (held.exchanges[0].ask, held.exchanges[0].merge) == (method.exchanges[0].ask, method.exchanges[0].merge)
    assert held.exchanges[0].expects is method.exchanges[0].expects


def test_a_client_gathers_penalties_and_stays_as_it_was():
    client = small().clients[0]
    first, second = pull(1.0, ()), pull(2.0, ())
    both = client.penalised(first).penalised(second)
    assert client.penalties == ()
    assert both.penalties == (first, second)
    assert client.fit(Order({}, rng=SEED), None, [0]).metrics == both.fit(Order({}, rng=SEED), None, [0]).metrics
