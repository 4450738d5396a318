"""What noise is worth: epsilon of whole clients, by Google's dp-accounting.

Two federations are neighbours if they differ in the data of one client (all of it, replaced by any other). A clipped
update then moves by at most ``2 C``, so noise of standard deviation ``z C`` has the ratio ``z / 2`` to the sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fedquilt.core.errors import ConfigError


def accountant() -> Any:
    """The module ``dp_accounting``.

    Raises
    ------
    ConfigError
        if it is not installed.
    """
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError(
            "privacy.mode: the spent epsilon is worked out by dp-accounting, which is not installed; install it with: "
            "pip install 'fedquilt[privacy]'"
        ) from error
    return dp_accounting


def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of one client whose clipped update went into ``releases`` noisy sums or replies; infinite without noise.

    Nothing is assumed to be secret: it holds whoever knows which rounds the client took part in.

    Paper: analytic-gaussian, epsilon
    """
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    # n releases of ratio z are exactly one of ratio z / sqrt(n)
    return _of_ratio(noise_multiplier / 2 / math.sqrt(releases), delta)


def composed_epsilon(noise_multipliers: Iterable[float], delta: float) -> float:
    """Epsilon of one client whose clipped update went into a noisy reply for each of these noise multipliers.

    Infinite if one of them is 0. It holds also if whoever asks chooses each noise by what the replies before it were: a
    client that stops at a bound of it has spent no more than that.

    Paper: adaptive-gaussian, filter
    """
    inverse = [math.inf if noise == 0 else 2 / noise for noise in noise_multipliers]
    squared = math.fsum(one * one for one in inverse) if math.inf not in inverse else math.inf
    if squared == 0:
        return 0.0
    return math.inf if math.isinf(squared) else _of_ratio(1 / math.sqrt(squared), delta)


def _of_ratio(ratio: float, delta: float) -> float:
    """Epsilon of Gaussian noise that is ``ratio`` times the sensitivity."""
    return float(accountant().get_epsilon_gaussian(ratio, delta))


def sampled_epsilon(noise_multiplier: float, cohort: int, clients: int, releases: int, delta: float) -> float:
    """Epsilon of any client after ``releases`` noisy sums, each over ``cohort`` of ``clients`` clients drawn without
    replacement, if nobody learns who was drawn; infinite without noise.

    Never more than if the client had taken part every time.

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
