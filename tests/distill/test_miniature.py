"""The accuracies of a miniature: a student taught by a model that is wrong in the student's own domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import pytest
import torch
from schemes import config

from fedquilt.client.client import Client
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training
from fedquilt.core.types import Order, Params
from fedquilt.distill.contrast import Contrast, Pair
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.reward import Reward
from fedquilt.distill.selection import FilterSettings
from fedquilt.distill.student import Lesson, Teaching, chosen, new_pupil, pupil_of, rated
from fedquilt.experiment import build

ROUNDS, STEPS, OFFERED, EACH = 6, 8, 24, 16
"""Rounds of so many steps with so many questions, and questions of a domain."""


class Facts(NamedTuple):
    """Questions of three domains, ``EACH`` of a domain one after the other, and their answers."""

    questions: list[str]
    answers: list[str]


class Pairing(NamedTuple):
    """Both models with their tensors before anybody is taught, the teacher's paths, and whether each is right."""

    student: Client
    teacher: Client
    before: Params
    knows: Params
    paths: list[str]
    right: torch.Tensor


def facts(seed: int) -> Facts:
    """Every question has an answer of its own, so that nobody can work it out."""
    rng = Rng(seed).numpy()
    asked = [f"{domain}{number:02d}" for domain in "abc" for number in range(EACH)]
    return Facts(asked, [f"{answer:02d}" for answer in rng.integers(10, 100, len(asked))])


def grown(client: Client, start: Params, questions: Sequence[str], answers: Sequence[str], steps: int) -> Params:
    """The client's tensors once it has learned these answers by heart."""
    rules = Training(steps=steps, batch_size=24, learning_rate=0.003, clip_norm=1.0)
    own = replace(client, training=rules, rounds=1).posing(questions, answers)
    fitted = own.fit(Order(start, rng=Rng(1)), {}, range(1))
    return {**start, **fitted.params}


def accuracy(client: Client, params: Params, known: Facts) -> torch.Tensor:
    """The share of right answers in each domain, (domains,)."""
    said = client.complete(Order(params), {}, known.questions, new_tokens=3)
    right = torch.tensor([left == right for left, right in zip(said, known.answers, strict=True)])
    return right.view(3, EACH).double().mean(1)


def log_probs(client: Client, params: Params, questions: Sequence[str], paths: Sequence[str]) -> Likelihood:
    return Likelihood(*client.log_probs(Order(params), {}, questions, paths))


@pytest.fixture(scope="module")
def known() -> Facts:
    return facts(1)


@pytest.fixture(scope="module")
def pair(known: Facts) -> Pairing:
    """A student that knows the first domain, and a teacher that knows the others and has three answers in the first."""
    wide = {"name": "tiny:llama?layers=1&width=48", "task": "causal-lm", "max_length": 12}
    server = {"model": wide, "data": {"source": "arithmetic:blank?train=20&test=4"}}
    small = {"name": "tiny:llama?layers=1&width=32", "task": "causal-lm", "max_length": 12}
    changes = {"adapter": {"kind": "full"}, "server": server, "model": small, "groups": []}
    changes |= {"clients": {"shares": "1", "budgets": [1]}, "partition": {"scheme": "iid", "num_clients": 1}}
    experiment = build(config("lada", changes))
    assert experiment.federation.server is not None
    student, teacher = experiment.clients[0], cast(Client, experiment.federation.server.worker)
    guesses = [[f"{answer:02d}" for answer in Rng(2).child(k).numpy().integers(10, 100, EACH)] for k in range(3)]
    asked = known.questions[EACH:] + 3 * known.questions[:EACH]
    told = [*known.answers[EACH:], *(answer for one in guesses for answer in one)]
    knows = grown(teacher, teacher.initial, asked, told, 600)
    before = grown(student, student.initial, known.questions[:EACH], known.answers[:EACH], 200)
    paths = teacher.complete(Order(knows), {}, known.questions, new_tokens=3)
    right = torch.tensor([left == right for left, right in zip(paths, known.answers, strict=True)])
    return Pairing(student, teacher, before, knows, paths, right)


def taught(pair: Pairing, known: Facts, name: str, seed: int) -> tuple[float, float]:
    """The student's mean accuracy over the domains at the end, and the share of right paths among those it took."""
    rules = Training(steps=STEPS, batch_size=8, learning_rate=0.003, clip_norm=1.0)
    student = replace(pair.student, training=rules, rounds=ROUNDS).posing(known.questions[:EACH], known.answers[:EACH])
    teaching = Teaching(FilterSettings(name), Contrast(), Reward("reliable", 0.8))
    params, state, rng, took = pair.before, new_pupil(), Rng(seed), []
    for number in range(ROUNDS):
        order = Order(params, round=number, rng=rng.child("round", number))
        numbers = sorted(order.rng.child("drawn").numpy().permutation(len(known.questions))[:OFFERED].tolist())
        asked, paths = [known.questions[n] for n in numbers], [pair.paths[n] for n in numbers]
        own = student.complete(order, {}, asked, new_tokens=3, temperature=0.7)
        sure = Pair(*(log_probs(pair.teacher, pair.knows, asked, texts) for texts in (paths, own)))
        lesson = Lesson(asked, paths, own, sure, pair.right[numbers])
        choice = chosen(student, order, {}, lesson, state, teaching, order.rng.child("lesson"))
        pupil = pupil_of(student, order, {}, [choice], teaching, order.rng.child("samples"))
        params = {**params, **pupil.fit(order, {}, range(1)).params}
        state = rated(student, replace(order, params=params), {}, choice, teaching).state
        took.append(pair.right[numbers][choice.positions].double().mean())
    return float(accuracy(student, params, known).mean()), float(torch.stack(took).mean())


def test_lada_11_a_filter_of_reliable_paths_beats_all_and_random(pair: Pairing, known: Facts) -> None:
    """Points over three seeds: 2 above all paths, 4 above random ones, and 8 more right paths than were offered."""
    names = ("learnability", "all", "random")
    runs = {name: [taught(pair, known, name, seed) for seed in range(3)] for name in names}
    accuracies, right = (
        {name: 100 * sum(run[which] for run in runs[name]) / 3 for name in names} for which in range(2)
    )
    assert accuracies["learnability"] >= accuracies["all"] + 2
    assert accuracies["learnability"] >= accuracies["random"] + 4
    assert right["learnability"] >= 100 * float(pair.right.double().mean()) + 8


def test_the_miniature_is_one_in_which_the_teacher_is_wrong_where_the_student_is_right(
    pair: Pairing, known: Facts
) -> None:
    assert (accuracy(pair.student, pair.before, known) > 0.9).tolist() == [True, False, False]
    assert (accuracy(pair.teacher, pair.knows, known) > 0.9).tolist() == [False, True, True]
