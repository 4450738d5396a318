"""Phases that take turns: whose tensors move, in how many steps, and what the model of before still says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import BERT, LLAMA, VIT, rows, small, start_of, task_of, workbench

from fedquilt.bank.client_cores import middle_of
from fedquilt.client.agreement import disagreement
from fedquilt.client.fit import alternate, fit
from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training, num_steps
from fedquilt.core.types import Order
from fedquilt.core.worker import Extra, Phase, at_once

SEED = Rng(4).child("alternate")
PLAIN = Training(steps=6, epochs=None, batch_size=4, optimizer="sgd")
SETTINGS = {"relation": "learned", "width": 0.5}


def bank(num_slots=5, k=4, deviation=0.3):
    generator = Rng(8).torch()
    return {f"bank.{site}": deviation * torch.randn(num_slots, k, generator=generator) for site in ("query", "value")}


def scene(model=VIT, training=PLAIN, dropout=0.0):
    bench = workbench(model, dropout=dropout)
    start, columns = start_of(bench), rows(task_of(model), 10)
    middle = middle_of(Order(bank(), SETTINGS), {}, bench.layout, rank=2)
    return bench, start, columns, Extra(middle.tensors, middle.cores)


def moved(fitted, start):
    return {name for name, tensor in fitted.params.items() if not torch.equal(tensor, start[name])}


def test_one_phase_is_fit_to_the_bit():
    bench, start, columns, _ = scene(dropout=0.1)
    names = [*bench.layout.names(range(4)), *bench.layout.head]
    ours = alternate(bench, columns, start, [Phase(frozenset(names))], PLAIN, 0.1, SEED)
    theirs = fit(bench, columns, start, names, PLAIN, 0.1, SEED)
    assert ours.metrics == theirs.metrics
    assert all(torch.equal(ours.params[name], theirs.params[name]) for name in names)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_h2_11_each_phase_moves_its_own_tensors_and_leaves_the_others_to_the_bit(optimizer):
    """H2-11. In the released code both phases' gradients meet in one optimiser step (B11)."""
    bench, start, columns, extra = scene()
    shared, private = frozenset(extra.tensors), frozenset({*bench.layout.names(range(4)), *bench.layout.head})
    whole = {**start, **extra.tensors}
    one_step = replace(PLAIN, steps=3, optimizer=optimizer, weight_decay=0.1)
    for mine, other in ((shared, private), (private, shared)):
        phases = [Phase(mine, 3), Phase(other, 1)]  # the other one's turn never comes
        fitted = alternate(bench, columns, start, phases, one_step, 0.1, SEED, extra=extra)
        assert moved(fitted, whole) == mine
    assert not any(tensor.requires_grad for tensor in extra.tensors.values())
    assert not any(parameter.requires_grad for parameter in bench.parameters.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_h2_11_the_steps_of_the_phases_are_as_configured(first, second, steps):
    """H2-11. In the released code a step falls on every fourth batch, always after the private phase (B11)."""
    bench, start, columns, extra = scene()
    shared, private = frozenset(extra.tensors), frozenset(bench.layout.head)
    turns, training = [], bench.training
    bench.training = lambda names, *more, **how: (
        turns.append((frozenset(names), len(told))) or training(names, *more, **how)
    )
    told = []
    bench.stepped = lambda number, of: told.append((number, of))
    fitted = alternate(
        bench,
        columns,
        start,
        [Phase(shared, first), Phase(private, second)],
        replace(PLAIN, steps=steps),
        0.01,
        SEED,
        extra=extra,
    )
    assert told == [(number, steps) for number in range(1, steps + 1)]
    assert fitted.metrics["steps"] == steps
    expected, begun = [], 0
    while begun < steps:
        mine = len(expected) % 2 == 0
        expected.append((shared if mine else private, begun))
        begun += first if mine else second
    assert turns == expected


def test_each_phase_keeps_its_own_moments_over_its_turns():
    """Two phases of one tensor each, in turns, are two runs of Adam, each on every other batch."""
    bench, start, columns, _ = scene()
    bias, weight = sorted(bench.layout.head)
    adam = replace(PLAIN, steps=8, optimizer="adamw", batch_size=10)  # all rows in each batch
    fitted = alternate(
        bench, columns, start, [Phase(frozenset([bias]), 1), Phase(frozenset([weight]), 1)], adam, 0.1, SEED
    )
    model_params = {name: tensor.clone() for name, tensor in start.items()}
    bench.load(model_params)
    optimizers = {name: torch.optim.AdamW([bench.parameters[name]], lr=0.1, weight_decay=0) for name in (bias, weight)}
    bench.model.train()
    for step in range(8):
        name = (bias, weight)[step % 2]
        parameter = bench.parameters[name].requires_grad_(True)
        logits, labels = bench.forward(columns)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizers[name].step()
        parameter.grad = None
        parameter.requires_grad_(False)
    for name in (bias, weight):
        torch.testing.assert_close(fitted.params[name], bench.parameters[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [VIT, LLAMA, BERT])
def test_the_first_step_of_a_turn_agrees_with_itself_and_later_ones_are_held_back(model):
    """H2-11, H2-12. In the released code teacher and student are of the same weights, so it holds nothing (B11)."""
    bench, start, columns, _ = scene(model)
    names = frozenset({*bench.layout.names(range(bench.layout.num_layers)), *bench.layout.head})

    def ended(steps, agreement, turn=None):
        phases = [Phase(names, turn, agreement=agreement)]
        return alternate(bench, columns, start, phases, replace(PLAIN, steps=steps, batch_size=10), 0.1, SEED).params

    def disagreed(params):
        out = []
        for values in (start, params):
            bench.load(values)
            with torch.no_grad():
                out.append(bench.scoring.answers(*bench.forward(columns)))
        return float(disagreement(out[1][0], out[0][0], out[0][1]))

    first, alone = ended(1, 5.0), ended(1, 0.0)
    assert all(torch.allclose(first[name], alone[name], atol=1e-6) for name in names)
    assert disagreed(ended(20, 3.0)) < 0.9 * disagreed(ended(20, 0.0))
    # with turns of one step each the earlier model is always the present one
    short, free = ended(6, 5.0, turn=1), ended(6, 0.0)
    assert all(torch.allclose(short[name], free[name], atol=1e-4) for name in names)


def test_the_loss_with_agreement_is_the_worked_sum_however_the_rows_are_split():
    """Two steps by hand: the second one's gradient is that of the mean loss plus the mean disagreement."""
    bench, start, columns, _ = scene(LLAMA)
    head = frozenset(bench.layout.names([2]))
    for size, parts in ((10, 1), (3, 4)):
        training = replace(PLAIN, steps=2, batch_size=size, accumulation=parts)
        ours = alternate(
            bench, columns, start, [Phase(head, agreement=2.0, temperature=1.5)], training, 0.5, SEED
        ).params
        bench.load(start)
        with torch.no_grad():
            taught, known = bench.scoring.answers(*bench.forward(columns))
        for _ in range(2):
            with bench.training(head) as trained:
                logits, labels = bench.forward(columns)
                given_, _ = bench.scoring.answers(logits, labels)
                loss = torch.nn.functional.cross_entropy(given_[known], labels[:, 1:][known])
                gradients = torch.autograd.grad(loss + 2.0 * disagreement(given_, taught, known, 1.5), trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter -= 0.5 * gradient
        for name in head:
            torch.testing.assert_close(ours[name], bench.parameters[name].detach(), rtol=1e-3, atol=1e-5)


def test_the_earlier_model_answers_without_dropout_and_moves_no_draw():
    bench, start, columns, _ = scene(dropout=0.5)
    names = frozenset(bench.layout.names(range(4)))
    weak = [
        alternate(bench, columns, start, [Phase(names, agreement=strength)], PLAIN, 0.1, SEED).params
        for strength in (0.0, 1e-12)
    ]
    assert all(torch.allclose(weak[0][name], weak[1][name], atol=1e-6) for name in names)


def test_penalties_see_all_that_any_phase_trains_and_the_start():
    bench, start, columns, extra = scene()
    seen = []

    def penalty(trained, began):
        seen.append((set(trained), {name: began[name].clone() for name in extra.tensors}))
        return torch.zeros(())

    phases = [Phase(frozenset(extra.tensors), 1, penalties=(penalty,)), Phase(bench.layout.head, 1)]
    alternate(bench, columns, start, phases, PLAIN, 0.1, SEED, extra=extra)
    assert len(seen) == 3
    for names, began in seen:
        assert names == {*extra.tensors, *bench.layout.head}
        assert all(torch.equal(began[name], tensor) for name, tensor in extra.tensors.items())


def test_the_rate_of_a_phase_scales_its_own_steps_alone():
    bench, start, columns, extra = scene()
    shared, head = frozenset(extra.tensors), bench.layout.head

    def ended(rate):
        phases = [Phase(head, 1), Phase(shared, 1, rate=rate)]
        return alternate(bench, columns, start, phases, replace(PLAIN, steps=2), 0.1, SEED, extra=extra).params

    one, three = ended(1.0), ended(3.0)
    assert all(torch.equal(one[name], three[name]) for name in head)
    for name, begin in extra.tensors.items():
        torch.testing.assert_close(three[name] - begin, 3 * (one[name] - begin), rtol=1e-3, atol=1e-5)


def test_what_breaks_is_told_with_its_step():
    bench, start, columns, extra = scene()
    phases = [
        Phase(frozenset(extra.tensors), 1),
        Phase(bench.layout.head, 1, penalties=(lambda *_: torch.tensor(torch.nan),)),
    ]
    with pytest.raises(TrainingError, match="penalty is nan at step 2"):
        alternate(bench, columns, start, phases, PLAIN, 0.1, SEED, extra=extra)
    assert num_steps(10, PLAIN) == 6
    assert bench.adapters[next(iter(bench.adapters))].core is None


def test_a_clients_own_penalties_and_frozen_tensors_hold_in_every_phase():
    held = small(training=PLAIN).clients[0]
    layout = held.bench.layout
    calls = []
    client = held.freezing(layout.names([0])).penalised(lambda *_: calls.append(1) or torch.zeros(()))
    phases = [Phase(frozenset(layout.names([0, 1])), 1), Phase(layout.head, 2)]
    fitted = client.alternate(Order({}, rng=SEED), None, phases)
    assert fitted.params.keys() == {*layout.names([1]), *layout.head}
    assert len(calls) == 6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_phase_of_several_rates_moves_each_tensor_as_if_its_rate_were_that_of_all(optimizer):
    bench, start, columns, _ = scene()
    names = [*bench.layout.names(range(4)), *bench.layout.head]
    one_step = replace(PLAIN, steps=1, optimizer=optimizer)
    fast = frozenset(names[::2])
    together = at_once([Phase(fast, rate=3.0), Phase(frozenset(names) - fast)])
    ours = alternate(bench, columns, start, [together], one_step, 0.1, SEED).params
    for chosen, rate in ((fast, 0.1 * 3.0), (frozenset(names) - fast, 0.1)):
        theirs = alternate(bench, columns, start, [Phase(frozenset(names))], one_step, rate, SEED).params
        assert all(torch.equal(ours[name], theirs[name]) for name in chosen)
