"""What each group of clients wants: the pseudo-gradient of its replies."""

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
    """What one architecture's clients want: ``gradient`` by name in float64, their ``weight`` in examples, and the
    weighted mean of the ``steps`` that they took."""

    gradient: Params
    weight: float
    steps: float


class Gathered:
    """The pseudo-gradient of every group that answered: ``g = sum_k w_k (S - S_k) / tau_k`` over its clients k.

    w_k is the share of the client in the examples of its group, tensor by tensor among those that sent it, and tau_k
    the number of its local steps: divided by them, a client that had time for few counts as much as one with many. One
    that took no step counts, with gradient 0. Replies are taken in one by one; kept is a sum for each group and tensor.

    Paper: heterotune, pseudo-gradient
    """

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self._base = base
        self._sums: dict[str, Params] = {}
        self._weights: dict[str, dict[str, float]] = {}
        self._totals: dict[str, tuple[float, float]] = {}

    def add(self, group: str, reply: Reply, steps: float) -> None:
        """Takes in a reply of a client of this group that made so many steps.

        Raises
        ------
        RoundError
            if it does not fit ``base`` or is not finite, its steps are no number of at least 0, or it took none and yet
            changed something.
        """
        base = self._base
        check_reply(base, reply)
        if (bad := not_finite(reply.params)) is not None:
            raise RoundError(f"client {reply.client} of {group} sent tensor '{bad}' with values that are not finite")
        if not 0 <= steps < math.inf:
            raise RoundError(f"client {reply.client} of {group} tells {steps} local steps; it must be at least 0")
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
        """The pseudo-gradient of every group of which there was a reply.

        Raises
        ------
        RoundError
            if there was none.
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
