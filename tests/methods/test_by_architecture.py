"""A method for one architecture, in each of several apart."""

from dataclasses import replace

import pytest
from promises import Setup, play, same
from small_federation import BERT, LLAMA, VIT, WIDE, mixtures, several

from fedquilt.core.rng import Rng
from fedquilt.core.types import Turn
from fedquilt.methods import METHODS
from fedquilt.methods.by_architecture import by_architecture


def fedit(federation):
    return METHODS["fedit"](federation)


def setup(models=(VIT, WIDE), factory=fedit, **how):
    scene = several(models, **how)
    return Setup(by_architecture(factory, scene.federation), scene.federation.profiles, scene.clients)


def test_one_architecture_is_the_method_itself():
    scene = several()
    alone = scene.federation.of(next(iter(scene.federation.layouts)))
    made = by_architecture(fedit, alone)
    assert "params" in made.init(Rng(1))
    assert made.exchanges[0].ask(made.init(Rng(1)), Turn(0, alone.profiles, Rng(2))).keys() == {0, 1}


def test_each_architecture_ends_as_if_the_others_were_not_there():
    both, one = several((LLAMA, BERT)), several((LLAMA, WIDE))
    name = both.clients[0].profile.architecture
    ends = []
    for scene in (both, one):
        made = Setup(by_architecture(fedit, scene.federation), scene.federation.profiles, scene.clients)
        ends.append(play(made).states[-1]["apart"])
    assert same(ends[0][name], ends[1][name])
    assert ends[0].keys() != ends[1].keys()


def test_neighbouring_numbers_or_not_the_means_are_those_of_the_architecture():
    made = setup(mixed=True)
    owners = [made.clients[id].profile.architecture for id in range(4)]
    assert owners[0] == owners[2] != owners[1] == owners[3]
    state = play(made, num_rounds=1).states[-1]
    for architecture, own in state["apart"].items():
        layout = next(c.bench.layout for c in made.clients.values() if c.profile.architecture == architecture)
        assert own["params"].keys() == layout.depth.keys()


def test_an_architecture_without_clients_in_a_round_stays_as_it_is():
    made = setup()
    first, second = made.method.init(Rng(5).child("init"))["apart"]
    played = play(made, num_rounds=1, cohort=lambda number: made.profiles[:2])
    before, after = (state["apart"] for state in (played.states[0], played.states[-1]))
    assert same(before[second], after[second])
    assert not same(before[first], after[first])


def test_an_order_says_whose_it_is_and_what_is_expected_is_of_its_architecture():
    made = setup((VIT, LLAMA))
    (exchange,) = made.method.exchanges
    state = made.method.init(Rng(1))
    orders = exchange.ask(state, Turn(0, made.profiles, Rng(2)))
    for profile in made.profiles:
        order = orders[profile.id]
        assert order.settings["architecture"] == profile.architecture
        depth = made.clients[profile.id].bench.layout.depth
        assert set(exchange.expects(order)) <= depth.keys()
        assert exchange.expects(order)
        assert made.method.view(state, profile).params.keys() == depth.keys()


def test_methods_with_unlike_exchanges_are_refused():
    def odd(federation):
        made = fedit(federation)
        if federation.layout.num_layers == 3:
            return made._replace(exchanges=(made.exchanges[0]._replace(name="other"),))
        return made

    with pytest.raises(ValueError, match="'fedit' has different exchanges"):
        setup(factory=odd)


def test_several_exchanges_are_joined_one_by_one():
    def twice(federation):
        made = fedit(federation)
        (fit,) = made.exchanges
        return made._replace(exchanges=(fit, fit._replace(name="again")))

    made = setup((BERT, WIDE), twice)
    assert [exchange.name for exchange in made.method.exchanges] == ["fit", "again"]
    played = play(made, num_rounds=1)
    assert [len(moved.bytes_up) for moved in played.traffic[0]] == [4, 4]


def test_a_federation_of_one_architecture_is_its_own_part():
    scene = several(proxy=3)
    first, second = scene.federation.layouts
    part = scene.federation.of(second)
    assert part.layout.architecture == second
    assert {profile.architecture for profile in part.profiles} == {second}
    assert part.proxy is scene.federation.proxies[second]
    assert part.scaling is scene.federation.scalings[second]
    assert part.of(second) == replace(part)
    with pytest.raises(KeyError):
        part.of(first)


def test_what_is_never_trained_goes_with_its_architecture_and_neither_moves_nor_travels_up():
    scene = mixtures((VIT, WIDE), trained="own", deviation=0.3)
    first, second = scene.federation.layouts
    assert scene.federation.of(first).frozen == {first: scene.federation.frozen[first]}
    method = by_architecture(fedit, scene.federation)
    (fit,) = method.exchanges
    state = method.init(Rng(5))
    orders = fit.ask(state, Turn(0, scene.federation.profiles, Rng(5)))
    sent = []
    for id, client in scene.clients.items():
        reply, _ = fit.work(client, orders[id], {})
        assert reply.params.keys() == fit.expects(orders[id]).keys()
        assert not reply.params.keys() & scene.federation.frozen[client.profile.architecture]
        sent.append(reply)
    after = fit.merge(state, iter(sent))
    for name in (first, second):
        before, now = (one["apart"][name]["params"] for one in (state, after))
        assert all(before[tensor] is now[tensor] for tensor in scene.federation.frozen[name])
        assert scene.federation.frozen[name]
