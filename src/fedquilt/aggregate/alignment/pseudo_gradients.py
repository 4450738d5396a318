"""The pseudo-gradient of each group of clients, from its replies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fedquilt.aggregate.mean import check_reply
from fedquilt.core.errors import RoundError
from fedquilt.core.params import not_finite, wide
from fedquilt.core.types import Params, Reply


class GroupGradient(NamedTuple):
    """The pseudo-gradient of one group.

    ``gradient`` is by name and in float64, ``weight`` the group's number of examples, and ``steps`` the weighted mean
    of its clients' numbers of local steps.
    """

    gradient: Params
    weight: float
    steps: float


class Gathered:
    """Accumulator of the groups' pseudo-gradients: ``g = sum_k w_k (S - S_k) / tau_k`` over the clients k of a group.

    w_k is the client's share of the examples of its group, for each tensor among the clients that sent it, and tau_k
    its number of local steps: the division makes clients with few and many steps count equally. A client without steps
    counts with gradient 0. Replies are added one by one, and only one sum is kept for each group and tensor.

    Paper: heterotune, pseudo-gradient
    """

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self._base = base
        self._sums: dict[str, Params] = {}
        self._weights: dict[str, dict[str, float]] = {}
        self._totals: dict[str, tuple[float, float]] = {}

    def add(self, group: str, reply: Reply, steps: float) -> None:
        """Add the reply of a client of this group that took this number of local steps.

        Raises
        ------
        RoundError
            if it does not fit ``base`` or is not finite, if its steps are not a number of at least 0, or if it took
            no steps but changed a tensor.
        """
        base = self._base
        check_reply(base, reply)
        if (bad := not_finite(reply.params)) is not None:
            raise RoundError(f"client {reply.client} of {group} sent tensor '{bad}' with values that are not finite")
        if not 0 <= steps < math.inf:
            raise RoundError(f"client {reply.client} of {group} reports {steps} local steps; it must be at least 0")
        own, own_weights = self._sums.setdefault(group, {}), self._weights.setdefault(group, {})
        weight = float(reply.weight)
        for name, tensor in reply.params.items():
            change = wide(base[name].detach()) - wide(tensor.detach().to(base[name].device))
            if steps == 0 and bool(change.any()):
                raise RoundError(f"client {reply.client} of {group} took no step, yet tensor '{name}' has changed")
            change = change * (weight / (steps or 1))
            own[name] = own[name] + change if name in own else change
            own_weights[name] = own_weights.get(name, 0.0) + weight
        examples, taken = self._totals.get(group, (0.0, 0.0))
        self._totals[group] = examples + weight, taken + weight * steps

    def gradients(self) -> dict[str, GroupGradient]:
        """The pseudo-gradient of every group with at least one reply.

        Raises
        ------
        RoundError
            if there was no reply.
        """
        if not self._totals:
            raise RoundError("no replies to align; at least one client must answer")
        return {
            group: GroupGradient(
                {name: total / self._weights[group][name] for name, total in self._sums[group].items()},
                examples,
                taken / examples,
            )
            for group, (examples, taken) in self._totals.items()
        }
