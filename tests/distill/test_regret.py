"""The order of the filters where rewards are known; experiments/lada/regret.py measures it on more seeds."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from fedquilt.distill.selection import FilterSettings

FILE = Path(__file__).parents[2] / "experiments" / "lada" / "regret.py"


@pytest.fixture(scope="module")
def regret():
    spec = spec_from_file_location("lada_regret", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_with_rewards_of_their_own_a_filter_comes_near_the_best_choices(regret):
    def gain(name):
        return regret.gain(FilterSettings(name=name), "monotone", 0.0, 14, 0)

    assert gain("learnability") > 0.6
    assert gain("linear-ucb") > 0.6
    assert gain("oracle") == pytest.approx(1.0)
    assert gain("all") == pytest.approx(0.0, abs=1e-6)
    assert abs(gain("random")) < 0.4


@pytest.mark.slow
def test_where_no_linear_rule_orders_the_samples_networks_do(regret):
    def gain(name):
        return sum(regret.gain(FilterSettings(name=name), "curved", 0.0, 60, seed) for seed in range(4)) / 4

    assert gain("learnability") > gain("linear-ucb") + 0.1


@pytest.mark.slow
def test_with_one_reward_for_a_batch_little_is_left_but_not_nothing(regret):
    learned = [regret.gain(FilterSettings(), "monotone", 1.0, 60, seed) for seed in range(4)]
    assert sum(learned) / 4 > 0.05


def test_rewards_are_those_of_the_formula(regret):
    inner, outer = torch.eye(16)[:, :8], torch.ones(8)
    found = regret.World(inner, outer, regret.WORLDS["monotone"]).rewards(torch.full((1, 16), 2.0))
    torch.testing.assert_close(found, torch.sigmoid(1.2 * 8 * torch.tanh(torch.tensor([1.0]))))
