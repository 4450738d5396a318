"""What clients of one architecture average when a method would leave it with each of them."""

from __future__ import annotations

import torch
from promises import Setup, play
from small_federation import LLAMA, VIT, several, small

from fedquilt.client import Training
from fedquilt.methods.fedit import fedit
from fedquilt.methods.h2tune import h2tune
from fedquilt.methods.local_only import local_only
from fedquilt.methods.per_architecture import placed, with_common_ends

TRAINING = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)


def test_local_training_whose_tensors_are_averaged_is_fedit_to_the_bit():
    ends = []
    for common in (True, False):
        scene = small(budgets=(4, 4, 4), training=TRAINING)
        if common:
            layout = scene.layout
            alone = local_only(scene.federation)
            (fit,) = alone.exchanges

            def ask(state, turn, fit=fit, name=layout.architecture):
                orders = fit.ask(state, turn)
                for order in orders.values():
                    order.settings["architecture"] = name
                return orders

            method = with_common_ends(alone._replace(exchanges=(fit._replace(ask=ask),)), scene.federation)
        else:
            method = fedit(scene.federation)
        state = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=2).states[-1]
        ends.append(
            {name: state["ends"][placed(layout.architecture, name)] for name in layout.depth}
            if common
            else state["params"]
        )
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())


def test_what_is_averaged_leaves_the_memory_and_what_else_is_kept_stays():
    scene = several((VIT, LLAMA), training=TRAINING)
    method = h2tune(scene.federation, ends="architecture")
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=2)
    assert all(memory["params"].keys() == {"relation"} for memory in played.memories.values())
    names = {placed(own, name) for own, layout in scene.federation.layouts.items() for name in layout.depth}
    assert played.states[-1]["ends"].keys() == names
