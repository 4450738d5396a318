"""Privacy accounting: the client-level epsilon of Gaussian noise, by Google's dp-accounting.

Two federations are neighbouring if the data of one client are replaced by any other data. A clipped update then changes
by at most ``2 C`` (C: the clipping norm), so noise of standard deviation ``z C`` has the ratio ``z / 2`` to the
sensitivity (z: the noise multiplier).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fedquilt.core.errors import ConfigError
from fedquilt.core.shell import install_extra

_LEAST = 1e-4  # floats no longer give the epsilon of less noise


def accountant(key: str = "privacy.mode") -> Any:
    """Import and return the module ``dp_accounting``; ``key`` is what asked for it, in an error.

    Raises
    ------
    ConfigError
        if it is not installed.
    """
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError(
            f"{key}: the spent epsilon is computed by dp-accounting, which is not installed; install it with: "
            f"{install_extra('privacy')}"
        ) from error
    return dp_accounting


def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of a client whose clipped update went into ``releases`` noisy sums or replies; infinite without noise.

    Nothing is assumed to be secret: it holds even against those who know which rounds the client took part in.

    Paper: analytic-gaussian, epsilon
    """
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    # n releases of ratio z are exactly equivalent to one of ratio z / sqrt(n)
    return _of_ratio(noise_multiplier / 2 / math.sqrt(releases), delta)


def composed_epsilon(noise_multipliers: Iterable[float], delta: float) -> float:
    """Epsilon of a client whose clipped update went into one noisy reply for each of these noise multipliers.

    Infinite if one of them is 0. It also holds if the server chooses each noise multiplier adaptively, after seeing the
    earlier replies: a client that stops at a bound on this epsilon has spent no more than the bound.

    Paper: adaptive-gaussian, filter
    """
    inverse = [math.inf if noise == 0 else 2 / noise for noise in noise_multipliers]
    squared = math.fsum(one * one for one in inverse) if math.inf not in inverse else math.inf
    if squared == 0:
        return 0.0
    return math.inf if math.isinf(squared) else _of_ratio(1 / math.sqrt(squared), delta)


def _of_ratio(ratio: float, delta: float) -> float:
    """Epsilon of Gaussian noise that is ``ratio`` times the sensitivity; infinite if it is above about 5e7."""
    return math.inf if ratio < _LEAST else float(accountant().get_epsilon_gaussian(ratio, delta))


def sampled_epsilon(noise_multiplier: float, cohort: int, clients: int, releases: int, delta: float) -> float:
    """Epsilon of any client after ``releases`` noisy sums over secretly drawn cohorts; infinite without noise.

    Each cohort is ``cohort`` of ``clients`` clients, drawn without replacement, and nobody learns who was drawn. The
    result is never more than if the client had taken part every time.

    Parameters
    ----------
    noise_multiplier
        Standard deviation of the noise in a sum, in units of the clipping norm.
    cohort, clients
        Number of clients in a cohort, and in all.
    releases
        Number of noisy sums.
    delta
        The delta at which epsilon is computed.

    Paper: subsampled-rdp, without-replacement
    """
    always = gaussian_epsilon(noise_multiplier, releases, delta)
    if cohort >= clients or releases == 0 or math.isinf(always):
        return always
    dp = accountant()
    book = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(clients, cohort, dp.GaussianDpEvent(noise_multiplier / 2))
    book.compose(event, releases)
    return min(always, float(book.get_epsilon(delta)))
