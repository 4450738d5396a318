"""Tensors that all architectures share, beside a method that runs separately in each."""

from dataclasses import replace

import pytest
from promises import Setup, play, same
from small_federation import VIT, WIDE, beside, common, rows, task_of

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.client import Training
from fedquilt.core.errors import ConfigError
from fedquilt.methods import METHODS
from fedquilt.methods.across_architectures import mean_of, split, with_shared
from fedquilt.methods.by_architecture import by_architecture

SGD = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05, optimizer="sgd", momentum=0.0)


def scene(private_rank=2, budgets=(3, 3)):
    """Clients of two architectures, with adapters that start from the same values whatever the stream."""
    made = common((VIT, WIDE), training=SGD, private_rank=private_rank, budgets=budgets)
    first = {one.profile.architecture: one.initial for one in made.clients.values()}
    initial = {name: lambda rng, own=own: dict(own) for name, own in first.items()}
    return made._replace(federation=replace(made.federation, initial=initial))


def setup(made, name="fedit", **settings):
    return Setup(beside(name, made.federation, **settings), made.federation.profiles, made.clients).bound()


@pytest.mark.parametrize("private_rank", [0, 2])
def test_fedit_beside_shared_cores_is_heterotune_in_common_coordinates_to_the_bit(private_rank):
    made = scene(private_rank)
    together = with_axes(METHODS["heterotune"](made.federation, align="none"), made.federation, 3)
    theirs = play(Setup(together, made.federation.profiles, made.clients).bound(), num_rounds=2).states[-1]["params"]
    ours = play(setup(scene(private_rank)), num_rounds=2).states[-1]
    found = dict(ours["shared"]["params"])
    for name, own in ours["apart"].items():
        found |= {f"{name}/{tensor}": value for tensor, value in own["params"].items()}
    assert any(tensor.any() for name, tensor in found.items() if is_shared(name))
    assert same(found, theirs)


def test_a_split_has_every_tensor_once():
    federation = scene().federation
    names = {name for layout in federation.layouts.values() for name in layout.depth if is_shared(name)}
    rest, both = split(federation, names)
    for architecture, layout in federation.layouts.items():
        parts = [one.layouts[architecture].depth for one in (rest, both)]
        assert {**parts[0], **parts[1]} == layout.depth
        assert not parts[0].keys() & parts[1].keys()
        assert set(both.layouts[architecture].shapes) == set(parts[1]) == names & layout.depth.keys()


def test_what_one_architecture_learns_reaches_another_through_the_shared_tensors_alone():
    def played(other, num_rounds):
        made = scene()
        first, second = made.federation.layouts
        changed = {
            id: replace(client, train=rows(task_of(VIT), len(client.train["labels"]), f"other {id}"))
            for id, client in made.clients.items()
            if other and client.profile.architecture == first
        }
        made = made._replace(clients={**made.clients, **changed})
        return play(setup(made), num_rounds=num_rounds).states[-1], second

    (ours, second), (theirs, _) = played(False, 1), played(True, 1)
    assert not same(ours["shared"], theirs["shared"])
    assert same(ours["apart"][second], theirs["apart"][second])
    (ours, _), (theirs, _) = played(False, 2), played(True, 2)
    assert not same(ours["apart"][second], theirs["apart"][second])


def test_a_core_is_trained_and_sent_with_the_shallowest_block_of_its_slot():
    made = setup(scene(budgets=(1, 3)), "fed-hello", allocation="gd", shape="inverted-triangle")
    seen = []
    (bases, fit) = made.method.exchanges

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        seen.append((client.bench.layout, order.settings["layers"], reply.params.keys()))
        return reply, memory

    method = made.method._replace(exchanges=(bases, fit._replace(work=work)))
    play(made._replace(method=method), num_rounds=1)
    assert len({len(layers) for _, layers, _ in seen}) > 1
    for layout, layers, sent in seen:
        cores = {name for name, depth in layout.depth.items() if is_shared(name) and depth in {*layers, None}}
        assert {name for name in sent if is_shared(name)} == cores


def test_a_method_of_several_exchanges_is_refused():
    made = scene()
    rest, both = split(made.federation, {"common.attention.0"})
    method = by_architecture(METHODS["fedit"], rest)
    with pytest.raises(ConfigError, match=r"axes\.share = 'all': method\.name = 'fedit' has 2 exchanges.*'fit', 'fit'"):
        with_shared(method._replace(exchanges=method.exchanges * 2), mean_of(both, "examples"), both)
