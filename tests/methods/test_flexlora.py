"""FlexLoRA on real clients of unlike rank: the mean product, cut to everyone's rank."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play
from recording import in_round, mean_change, recorded, weights
from small_federation import small

from fedquilt.core.factors import factors
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply
from fedquilt.methods.flexlora import flexlora

RANKS = (2, 4, 3)


def scene_and_setup(**settings):
    scene = small(budgets=(4, 4, 4), rank=4, ranks=RANKS)
    return scene, Setup(flexlora(scene.federation, **settings), scene.federation.profiles, scene.clients)


@pytest.mark.parametrize("split", ["left", "even"])
def test_t22_everyone_gets_the_best_approximation_of_the_mean_product_at_its_rank(split):
    """T22: Eckart and Young, against numpy's dense decomposition, in every round."""
    scene, setup = scene_and_setup(split=split)
    played, sent = recorded(setup, num_rounds=2)
    for number in range(2):
        mean = mean_change(in_round(sent, number), scene.federation.scaling)
        for profile in setup.profiles:
            view = setup.method.view(played.states[number + 1], profile)
            assert {len(pair.A) for pair in factors(view.params).values()} == {profile.budget.rank}
            own = weights(view.params, scene.federation.scaling)
            for module, matrix in mean.items():
                u, s, vh = torch.linalg.svd(matrix)
                r = profile.budget.rank
                torch.testing.assert_close(own[module], (u[:, :r] * s[:r]) @ vh[:r], rtol=0, atol=1e-6)
                missing = float((matrix - own[module]).norm())
                assert missing == pytest.approx(float(s[r:].norm()), abs=1e-6)


def test_t22_a_lower_rank_is_the_beginning_of_a_higher_one():
    """T22: nested; B differs by the scales, 8 / 2 against 8 / 4."""
    _, setup = scene_and_setup()
    played = play(setup, num_rounds=1)
    low, high = (factors(setup.method.view(played.states[-1], setup.profiles[k]).params) for k in (0, 1))
    for module in low:
        assert torch.equal(low[module].A, high[module].A[:2])
        assert torch.equal(low[module].B, high[module].B[:, :2] / 2)


def test_t29_the_same_change_at_another_rank_and_scale_counts_the_same():
    """T29: B A at rank 2 with scale 4 is 2 B A at scale 2, padded with zeros to rank 4."""
    scene, setup = scene_and_setup()
    state = setup.method.init(Rng(5))
    merge, ends = setup.method.exchanges[0].merge, []
    base = state["params"]
    for rank in (2, 4):
        params = {}
        for module, (b, a) in factors(base).items():
            generator = torch.Generator().manual_seed(len(params))
            own_b, own_a = torch.randn(len(b), 2, generator=generator), torch.randn(2, a.shape[1], generator=generator)
            ratio = scene.federation.scaling(module, 2) / scene.federation.scaling(module, rank)
            params[f"{module}.lora_B"] = torch.cat([own_b * ratio, torch.zeros(len(b), rank - 2)], dim=1)
            params[f"{module}.lora_A"] = torch.cat([own_a, torch.zeros(rank - 2, a.shape[1])])
        replies = [Reply(0, params, 3.0), Reply(1, {n: t for n, t in base.items() if "lora" in n}, 1.0)]
        ends.append(weights(merge(state, iter(replies))["params"], scene.federation.scaling))
    for module in ends[0]:
        assert bool(ends[0][module].any())
        torch.testing.assert_close(ends[0][module], ends[1][module], rtol=1e-5, atol=1e-6)


def test_a_direction_without_a_singular_value_can_still_learn():
    """At first there are fewer directions than ranks: they keep a row of A, with B at zero."""
    scene = small(budgets=(4, 4), sizes=(5, 5), rank=4, ranks=(1, 1))
    setup = Setup(flexlora(scene.federation), scene.federation.profiles, scene.clients)
    state = play(setup, num_rounds=1).states[-1]
    for pair in factors(state["params"]).values():
        assert not bool(pair.B[:, 2:].any())
        assert bool(pair.A[2:].any(dim=1).all())


def test_bytes_follow_the_rank():
    scene, setup = scene_and_setup()
    ((traffic,),) = play(setup, num_rounds=1).traffic
    head = sum(4 * torch.Size(scene.layout.shapes[name]).numel() for name in scene.layout.head)
    for profile in setup.profiles:
        pairs = 8 * 4 * (8 + 8) * profile.budget.rank  # q and v of four layers, float32, 8 features in and out
        assert traffic.bytes_up[profile.id] == traffic.bytes_down[profile.id] == pairs + head
