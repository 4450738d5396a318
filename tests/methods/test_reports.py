"""What of its state a method has recorded: what readers of the record look at, and no seed or draw."""

from __future__ import annotations

from promises import Setup, play
from small_federation import LLAMA, VIT, several, small

from fedquilt.aggregate.server_optimizer import with_server_optimizer
from fedquilt.aggregate.settings import ServerOptimizer
from fedquilt.client import Training
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.methods.fed_hello import fed_hello
from fedquilt.methods.h2tune import h2tune
from fedquilt.privacy.noise import with_central_dp

TRAINING = Training(steps=1, epochs=None, batch_size=4)


def reports(method, scene, num_rounds=2):
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=num_rounds)
    return [method.report(state) for state in played.states]


def test_fed_hello_reports_scores_and_odds_once_there_are_any():
    scene = small(proxy=3, training=TRAINING)
    first, *_, last = reports(fed_hello(scene.federation, warmup=1, refresh=1), scene)
    assert first == {}
    assert last.keys() == {"scores", "probabilities", "refreshed"}
    assert len(last["scores"]) == len(last["probabilities"]) == scene.layout.num_layers
    assert last["refreshed"] == 2


def test_apart_every_architecture_reports_its_own():
    scene = several((VIT, LLAMA), proxy=3, training=TRAINING)
    method = by_architecture(lambda own: fed_hello(own, warmup=1, refresh=1), scene.federation)
    last = reports(method, scene)[-1]
    assert last.keys() == {"scores", "probabilities", "refreshed"}
    assert {name: len(odds) for name, odds in last["probabilities"].items()} == {"vit-4x8": 4, "llama-3x8": 3}


def test_h2tune_reports_its_alignment_alone_and_no_draw():
    scene = several((VIT, LLAMA), training=TRAINING)
    assert reports(h2tune(scene.federation, selection="drawn"), scene)[-1] == {}
    aligned = reports(h2tune(scene.federation, align="projection", deviation=0.1), scene)[-1]
    assert aligned.keys() == {"conflicts", "cosines"}
    assert len(aligned["cosines"]) == 4


def test_wrappers_add_what_they_count():
    scene = small(proxy=3, training=TRAINING)
    hello = fed_hello(scene.federation, warmup=0, refresh=1)
    stepped = with_server_optimizer(hello, ServerOptimizer("adam"))
    noised = with_central_dp(stepped, clip_norm=1.0, noise_multiplier=0.1, test_key=3)
    last = reports(noised, scene)[-1]
    assert last["releases"] == 2
    assert last.keys() == {"scores", "probabilities", "refreshed", "stalled", "releases"}
