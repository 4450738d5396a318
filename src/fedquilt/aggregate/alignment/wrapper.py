"""Alignment (CMGA) as a wrapper of any method that averages tensors over several groups of clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from torch import Tensor

from fedquilt.aggregate.alignment.gradients import Aligned, aligned_step
from fedquilt.aggregate.alignment.pseudo_gradients import Gathered
from fedquilt.aggregate.settings import AlignSettings
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params, Profile, Reply

MOST = 16
"""Largest number of groups for which the cosines between all pairs are recorded."""

Groups = Literal["architecture", "group", "client"]


class Draws(TypedDict):
    """Seed of the projections' random orders, and number of merges so far, each of which has a stream of its own."""

    seed: int
    merges: int


class AlignmentState(TypedDict):
    """The entries that alignment adds to a server's state.

    Attributes
    ----------
    conflicts
        Number of conflicts in the last merge, see ``gradients.Aligned``.
    cosines
        The cosines of the last merge, flat: rows and columns in the order of the groups' names, 0 for an absent group;
        empty for more than ``MOST`` groups.
    align
        The random orders.
    """

    conflicts: int
    cosines: list[float]
    align: Draws


def group_of(profile: Profile, groups: Groups) -> str:
    """The name of a client's group: its architecture, the label of its group, or the client's own number."""
    # zero-padded, as names are sorted as text
    return {"architecture": profile.architecture, "group": profile.group, "client": f"client {profile.id:09d}"}[groups]


def with_alignment(
    method: Method,
    profiles: Iterable[Profile],
    counts: Callable[[str], bool],
    settings: AlignSettings,
    *,
    groups: Groups = "architecture",
    weighting: str = "examples",
    local_steps: Callable[[Profile], int] | None = None,
    learning_rate: float = 1.0,
) -> Method:
    """The method whose server aligns the groups' updates of some tensors, instead of averaging them.

    The method's ``merge`` is given the replies without these tensors, followed by one more reply that holds them after
    the aligned step: the method's own mean of these tensors is then that step, wherever the method stores them. The
    tensors before the step are those of ``method.view``. The state additionally holds an ``AlignmentState``. ``init``
    raises ConfigError if the method's state is not a table. A method whose clients send different parts of the server's
    tensors, such as H2Tune, must align them in its own ``merge``: see ``bank.alignment``.

    Parameters
    ----------
    method, profiles, settings
        The method to wrap, all clients of the federation, and how to align.
    counts
        ``counts(name)`` says whether a tensor of a reply is aligned.
    groups, weighting, learning_rate
        The groups that are aligned, the clients' weights (``"examples"``, ``"uniform"``), the server's learning rate.
    local_steps
        ``Federation.local_steps``; a reply's steps are then computed from the number of examples that it weighs. If
        left out, they are the replies' metric ``steps``, at least 1: a client could then move the shared tensors
        arbitrarily far, as the server's step grows with the reported steps.
    """
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"the server's learning rate is {learning_rate!r}; it must be a finite number above 0")
    by_client = {profile.id: profile for profile in profiles}
    names = sorted({group_of(profile, groups) for profile in by_client.values()})
    typical = {profile.architecture: profile for profile in by_client.values()}

    def init(rng: Rng) -> AlignmentState:
        state = method.init(rng)
        if not isinstance(state, Mapping):
            raise ConfigError(f"aggregation.align: the server of method '{method.name}' keeps no table of tensors")
        return {**state, **first_record(names, rng)}

    def base_of(state: AlignmentState) -> Params:
        """The aligned tensors as they are on the server."""
        base: Params = {}
        for profile in typical.values():
            base |= {name: value for name, value in method.view(state, profile).params.items() if counts(name)}
        return base

    def aligning(exchange: Exchange) -> Exchange:
        def merge(state: AlignmentState, replies: Iterable[Reply]) -> AlignmentState:
            base = base_of(state)
            gathered, result = Gathered(base), list[Aligned]()

            def given() -> Iterator[Reply]:
                last = None
                for reply in replies:
                    counted = {name: value for name, value in reply.params.items() if counts(name)}
                    weighed = reply if weighting == "examples" else replace(reply, weight=1.0)
                    profile = by_client[reply.client]
                    steps = _steps(reply, profile, local_steps)
                    gathered.add(group_of(profile, groups), replace(weighed, params=counted), steps)
                    last = replace(reply, params={}, metrics={})
                    yield replace(reply, params=without(reply.params, counted.keys()))
                if last is None:
                    return
                moved, made = aligned_step(base, gathered.gradients(), settings, draws_of(state), learning_rate)
                result.append(made)
                if made.gradient:
                    yield replace(last, params=select(moved, made.gradient.keys()))

            after = exchange.merge(state, given())
            return {**after, **next_record(state, result[0], names)}

        return exchange._replace(merge=merge)

    exchanges = tuple(aligning(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, report=lambda s: {**method.report(s), **reported(s)})


def _steps(reply: Reply, profile: Profile, local_steps: Callable[[Profile], int] | None) -> float:
    """The number of optimiser steps that a reply is counted for."""
    if local_steps is None:
        return max(1.0, reply.metrics.get("steps", 1.0))
    # from the reply's weight, as the client may have announced any number of examples
    return float(local_steps(replace(profile, num_examples=math.ceil(reply.weight))))


# Alignment in the server's state ------------------------------------------------------------


def first_record(names: Sequence[str], rng: Rng) -> AlignmentState:
    """The initial entries of the state of a server that aligns these groups."""
    return {"conflicts": 0, "cosines": _flat(None, names), "align": {"seed": rng.integer(), "merges": 0}}


def reported(state: AlignmentState) -> dict[str, Any]:
    """The statistics of an alignment for the record of a round."""
    return {"conflicts": state["conflicts"], "cosines": state["cosines"]}


def draws_of(state: AlignmentState) -> Rng:
    """The stream of the next alignment."""
    return Rng(state["align"]["seed"]).child("merge", state["align"]["merges"])


def next_record(state: AlignmentState, made: Aligned, names: Sequence[str]) -> AlignmentState:
    """The entries of the state after an alignment that drew from ``draws_of(state)``."""
    draws: Draws = {**state["align"], "merges": state["align"]["merges"] + 1}
    return {"conflicts": made.conflicts, "cosines": _flat(made, names), "align": draws}


def _flat(made: Aligned | None, names: Sequence[str]) -> list[float]:
    """The cosines between all groups, row by row."""
    if len(names) > MOST:
        return []
    place = {} if made is None else {name: number for number, name in enumerate(made.groups)}
    table: Tensor | None = None if made is None else made.cosines
    return [
        float(table[place[one], place[other]]) if table is not None and one in place and other in place else 0.0
        for one in names
        for other in names
    ]
