"""Epsilon against the formula of the Gaussian mechanism, published values, and what any accountant must obey."""

import builtins
import math

import pytest

from fedquilt.core.errors import ConfigError
from fedquilt.privacy.account import accountant, gaussian_epsilon, sampled_epsilon


def phi(x):
    return math.erfc(-x / math.sqrt(2)) / 2  # keeps its digits in the lower tail


def delta_of(epsilon, ratio):
    """Delta of Gaussian noise of ``ratio`` to the sensitivity, by its formula."""
    return phi(1 / (2 * ratio) - epsilon * ratio) - math.exp(epsilon) * phi(-1 / (2 * ratio) - epsilon * ratio)


@pytest.mark.parametrize("noise", [0.8, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("releases", [1, 7, 100])
def test_epsilon_of_plain_noise_solves_the_formula_of_the_gaussian_mechanism(noise, releases):
    epsilon = gaussian_epsilon(noise, releases, 1e-5)
    ratio = noise / 2 / math.sqrt(releases)  # replacing a client moves the sum by twice the bound
    if epsilon < 20:  # beyond, the formula itself loses its digits
        assert delta_of(epsilon, ratio) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon > 0


def test_a_value_worked_elsewhere():
    # the exact sigma for epsilon 1, delta 1e-5 and sensitivity 1, as tables of the analytic Gaussian mechanism give it
    assert gaussian_epsilon(2 * 3.730631634, 1, 1e-5) == pytest.approx(1.0, rel=1e-6)


def test_rounds_compose_exactly():
    assert gaussian_epsilon(8.0, 16, 1e-5) == pytest.approx(gaussian_epsilon(2.0, 1, 1e-5))


def test_sampling_is_the_papers_bound_of_second_order():
    """At alpha = 2 the bound is ``log(1 + q^2 min(4 (e^r - 1), 2 e^r))`` with ``r = 2 / (2 ratio^2)``."""
    dp = accountant()
    noise, cohort, clients = 6.0, 10, 200
    book = dp.rdp.RdpAccountant([2.0], dp.NeighboringRelation.REPLACE_ONE)
    book.compose(dp.SampledWithoutReplacementDpEvent(clients, cohort, dp.GaussianDpEvent(noise / 2)), 1)
    divergence = 1 / (noise / 2) ** 2
    wanted = math.log1p((cohort / clients) ** 2 * min(4 * math.expm1(divergence), 2 * math.exp(divergence)))
    assert float(book._rdp[0]) == pytest.approx(wanted, rel=1e-9)
    # and what comes out is no worse than that order alone converted to epsilon
    epsilon = sampled_epsilon(noise, cohort, clients, 1, 1e-5)
    assert 0 < epsilon <= wanted + math.log(1e5)


def test_a_whole_cohort_is_the_plain_mechanism_and_sampling_never_costs_more():
    assert sampled_epsilon(2.0, 10, 10, 5, 1e-5) == gaussian_epsilon(2.0, 5, 1e-5)
    for cohort in (1, 5, 9):
        assert sampled_epsilon(4.0, cohort, 10, 5, 1e-5) <= gaussian_epsilon(4.0, 5, 1e-5)
    assert sampled_epsilon(4.0, 10, 1000, 20, 1e-5) < gaussian_epsilon(4.0, 20, 1e-5) / 5


def test_more_rounds_more_clients_a_round_and_less_noise_cost_more():
    of_rounds = [sampled_epsilon(4.0, 10, 500, rounds, 1e-5) for rounds in (1, 10, 100)]
    of_cohorts = [sampled_epsilon(4.0, cohort, 500, 10, 1e-5) for cohort in (5, 50, 500)]
    of_noise = [sampled_epsilon(noise, 10, 500, 10, 1e-5) for noise in (8.0, 4.0, 2.0)]
    for values in (of_rounds, of_cohorts, of_noise):
        assert values == sorted(values)
        assert len(set(values)) == 3


def test_no_noise_is_no_bound_and_no_release_costs_nothing():
    assert gaussian_epsilon(0.0, 3, 1e-5) == math.inf
    assert sampled_epsilon(0.0, 2, 10, 3, 1e-5) == math.inf
    assert gaussian_epsilon(0.0, 0, 1e-5) == 0.0
    assert sampled_epsilon(1.0, 2, 10, 0, 1e-5) == 0.0


def test_a_missing_accountant_is_named_with_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "dp_accounting":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"dp-accounting, which is not installed; .*pip install .*\[privacy\]"):
        gaussian_epsilon(1.0, 1, 1e-5)
