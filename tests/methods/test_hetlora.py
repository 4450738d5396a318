"""HETLoRA on real clients: cut, weighed by what they learned, padded, averaged; and they prune themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from promises import Setup, play
from recording import in_round, recorded, weights
from small_federation import small

from fedquilt.client import Training
from fedquilt.config.arguments import arguments
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import factors, named
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply
from fedquilt.methods import METHODS
from fedquilt.methods.hetlora import hetlora

RANKS = (2, 4, 3)


def scene_and_setup(ranks=RANKS, **settings):
    scene = small(budgets=(4,) * len(ranks), sizes=(5, 8, 6)[: len(ranks)], rank=4, ranks=ranks)
    return scene, Setup(hetlora(scene.federation, **settings), scene.federation.profiles, scene.clients)


@pytest.mark.parametrize("normalize", ["all", "segment"])
def test_t25_the_mean_of_padded_factors_by_the_norms_of_products(normalize):
    """T25: written out rank by rank, in numbers of its own; ``all`` shrinks the ranks that not everybody holds."""
    scene, setup = scene_and_setup(gamma=1.0, normalize=normalize)
    scaling = scene.federation.scaling
    played, sent = recorded(setup, num_rounds=2)
    for number in range(2):
        here = in_round(sent, number)
        sizes = [
            math.sqrt(sum(float(m.square().sum()) for m in weights(one.reply.params, scaling).values())) for one in here
        ]
        parts = [size / sum(sizes) for size in sizes]
        after = factors(played.states[number + 1]["params"])
        for module, (b, a) in after.items():
            own = [factors(one.reply.params)[module] for one in here]
            for i in range(4):
                holders = [k for k in range(3) if RANKS[k] > i]
                over = 1.0 if normalize == "all" else sum(parts[k] for k in holders)
                row = sum(parts[k] * own[k].A[i].double() for k in holders) / over
                column = sum(parts[k] * (8 / RANKS[k]) * own[k].B[:, i].double() for k in holders) / over / (8 / 4)
                torch.testing.assert_close(a[i].double(), row, rtol=1e-5, atol=1e-7)
                torch.testing.assert_close(b[:, i].double(), column, rtol=1e-5, atol=1e-7)


def test_t25_a_client_is_sent_the_beginning_of_the_servers_factors_at_its_own_scale():
    """T25: cut to rank r, B times s_R / s_r."""
    _, setup = scene_and_setup(gamma=1.0)
    played, sent = recorded(setup, num_rounds=2)
    server = factors(played.states[1]["params"])
    for one in in_round(sent, 1):
        rank = RANKS[one.reply.client]
        for module, (b, a) in factors(one.order.params).items():
            assert torch.equal(a, server[module].A[:rank])
            torch.testing.assert_close(b, server[module].B[:, :rank] * (rank / 4), rtol=1e-6, atol=0)


def shrunk(pairs, rank):
    """The factors with a tail of half the size beyond ``rank``."""
    half = torch.ones(4)
    half[rank:] = 0.5
    return {module: (b * half[: len(a)], a * half[: len(a), None]) for module, (b, a) in pairs.items()}


class Shrinks:
    """A client whose training does nothing but make its tail smaller, or larger."""

    def __init__(self, client, grows=False):
        self.client, self.grows = client, grows

    def __getattr__(self, name):
        return getattr(self.client, name)

    def fit(self, order, memory, layers, *, blocks=None):
        fitted = self.client.fit(order, memory, layers)
        pairs = factors(self.client.params(order, memory))
        smaller = named(shrunk(pairs, max(1, len(next(iter(pairs.values())).A) - 1)))
        if self.grows:
            smaller = {name: 4 * tensor for name, tensor in smaller.items()}
        return replace(fitted, params={**fitted.params, **{n: smaller[n] for n in smaller if n in fitted.params}})


def test_t25_a_client_whose_tail_shrank_goes_on_with_a_lower_rank_that_the_server_remembers():
    """T25: pruning is monotone and ends at ``min_rank``; a tail that grew prunes nothing."""
    scene, setup = scene_and_setup(ranks=(4, 4, 3), gamma=0.75, min_rank=2)
    clients = {0: Shrinks(scene.clients[0]), 1: Shrinks(scene.clients[1], grows=True), 2: scene.clients[2]}
    state = setup.method.init(Rng(5).child("init"))
    generator = torch.Generator().manual_seed(0)
    state["params"] = {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in state["params"].items()}
    played, sent = recorded(setup._replace(clients=clients), num_rounds=4, state=state)
    of_first = [one for one in sent if one.reply.client == 0]
    assert [one.reply.metrics["rank"] for one in of_first] == [3.0, 2.0, 2.0, 2.0]
    assert [len(next(iter(factors(one.order.params).values())).A) for one in of_first] == [4, 3, 2, 2]
    # as long as it was sent, with zeros where it was cut
    assert all(one.reply.params[n].shape == one.order.params[n].shape for one in of_first for n in one.reply.params)
    assert all(
        not bool(b[:, 3:].any()) and not bool(a[3:].any()) for b, a in factors(of_first[0].reply.params).values()
    )
    assert all(one.reply.metrics["rank"] == 4.0 for one in sent if one.reply.client == 1)
    assert [state["ranks"].get("0") for state in played.states] == [None, 3, 2, 2, 2]
    assert "1" not in played.states[-1]["ranks"]
    view = setup.method.view(played.states[-1], setup.profiles[0])
    assert {len(pair.A) for pair in factors(view.params).values()} == {2}


def test_t25_what_was_cut_does_not_count_as_zeros_that_the_client_holds():
    """T25: with ``segment`` the mean of a rank is over those that still hold it."""
    _, setup = scene_and_setup(ranks=(4, 4), gamma=0.75, normalize="segment")
    state = setup.method.init(Rng(5).child("init"))
    pairs = factors(state["params"])
    full = named({m: (torch.ones_like(b), torch.ones_like(a)) for m, (b, a) in pairs.items()})
    short = named({m: (torch.ones_like(b), torch.ones_like(a)) for m, (b, a) in pairs.items()})
    for module in pairs:
        short[f"{module}.lora_B"][:, 3:] = 0.0
        short[f"{module}.lora_A"][3:] = 0.0
    replies = [Reply(0, short, 1.0, {"rank": 3.0}), Reply(1, full, 1.0, {"rank": 4.0})]
    after = factors(setup.method.exchanges[0].merge(state, iter(replies))["params"])
    for b, a in after.values():
        torch.testing.assert_close(b, torch.ones_like(b))  # though rank 3 has another scale than rank 4
        torch.testing.assert_close(a, torch.ones_like(a))


@pytest.mark.parametrize("told", [0.0, 9.0, -3.0])
def test_a_rank_that_no_client_can_have_is_brought_into_bounds(told):
    _, setup = scene_and_setup(ranks=(4, 4))
    state = setup.method.init(Rng(5).child("init"))
    params = {name: tensor + 1 for name, tensor in state["params"].items()}
    after = setup.method.exchanges[0].merge(state, iter([Reply(0, params, 1.0, {"rank": told})]))
    assert after["ranks"] == ({} if told > 4 else {"0": 1})


def test_t25_the_penalty_pulls_the_tail_and_nothing_else():
    """T25: one step of plain SGD from the same start; the gradient of ``||B_tail|| ||A_tail||`` written out."""
    plain, ends = Training(steps=1, epochs=None, batch_size=4, learning_rate=0.05, optimizer="sgd"), []
    for strength in (0.0, 0.01):
        scene = small(budgets=(4,), sizes=(6,), rank=4, ranks=(4,), training=plain, dropout=0.0)
        method = hetlora(scene.federation, gamma=0.75, min_rank=4, tail_penalty=strength)
        state = method.init(Rng(5).child("init"))
        generator = torch.Generator().manual_seed(0)
        state["params"] = {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in state["params"].items()}
        _, (sent,) = recorded(Setup(method, scene.federation.profiles, scene.clients), num_rounds=1, state=state)
        start = factors(sent.order.params)
        ends.append(sent)
    without, penalised = (factors(one.reply.params) for one in ends)
    for module, (b, a) in start.items():
        difference = penalised[module].B - without[module].B
        pull = -0.05 * 0.01 * a[3:].norm() * b[:, 3:] / b[:, 3:].norm()
        torch.testing.assert_close(difference[:, :3], torch.zeros(8, 3), rtol=0, atol=1e-7)
        torch.testing.assert_close(difference[:, 3:], pull, rtol=1e-3, atol=1e-7)
        assert float(pull.norm()) > 1e-5


def test_gamma_1_never_prunes():
    _, setup = scene_and_setup(gamma=1.0)
    assert play(setup, num_rounds=3).states[-1]["ranks"] == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "method.gamma = 0.0: must be above 0"),
        ({"gamma": 1.5}, "method.gamma = 1.5: must be at most 1"),
        ({"min_rank": 0}, "method.min_rank = 0: must be at least 1"),
        ({"tail_penalty": -0.1}, "method.tail_penalty = -0.1: must be at least 0"),
        ({"gamma": 1.0, "min_rank": 2}, "method.min_rank = 2: has no effect with method.gamma = 1.0; leave it out"),
        ({"gamma": 1.0, "tail_penalty": 0.1}, "method.tail_penalty = 0.1: has no effect with method.gamma = 1.0"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        arguments(METHODS["hetlora"], settings, prefix="method")
