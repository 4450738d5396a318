"""Alignment (CMGA) put around any method that averages some tensors over clients of several groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from fedquilt.aggregate.alignment.gradients import Aligned, AlignSettings, aligned_step
from fedquilt.aggregate.alignment.pseudo_gradients import Gathered
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params, Profile, Reply, Tree

ALIGN = "align"
"""The key of the server's state under which lie the seed and the count of what is drawn."""

MOST = 16
"""Groups of which the cosines between all pairs are kept for the record."""

Groups = Literal["architecture", "group", "client"]


def group_of(profile: Profile, groups: Groups) -> str:
    """The name of the group that a client is of: its architecture, the label of its group, or the client alone."""
    # padded: names are sorted as text
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
) -> Method:
    """The method whose server aligns what groups of clients want of some tensors, in place of their mean.

    ``counts(name)`` says which tensors of a reply; the others go the method's own way. The method's ``merge`` is given
    the replies without those tensors, and behind the last a reply that holds them as they are after the aligned step:
    a mean over all who sent a tensor is then that step, whatever the method keeps where. What the server sent is taken
    from ``method.view``. Kept are sums for each group and one reply at a time; where a client is a group of its own,
    that is all of theirs. Steps are ``local_steps(profile)`` (``Federation.local_steps``) for as many examples as the
    reply weighs. A client's own word on them would let it throw the shared tensors as far as it likes: the server's
    step grows with them, and its pull shrinks. Where that is not given, they are the replies' metric ``steps``, at
    least 1, and 1 where a client does not tell.

    The state has besides ``conflicts`` (their number), ``cosines`` (flat, rows and columns in the order of the groups'
    names, 0 for one that was absent; empty for more than 16 groups) and ``align``, the seed of the projections' orders.

    A method of whose server's tensors clients send unlike parts, as H2Tune's do, has to align them in its own
    ``merge``: see ``bank.alignment``.

    Raises
    ------
    ConfigError
        from ``init``, if the state is no table that the record of alignment could be put into.
    """
    by_client = {profile.id: profile for profile in profiles}
    names = sorted({group_of(profile, groups) for profile in by_client.values()})
    typical = {profile.architecture: profile for profile in by_client.values()}

    def init(rng: Rng) -> Tree:
        state = method.init(rng)
        if not isinstance(state, Mapping):
            raise ConfigError(f"aggregation.align: the server of method '{method.name}' keeps no table of tensors")
        return {**state, **first_record(names, rng)}

    def base_of(state: Tree) -> Params:
        """The tensors that count, as the server has them."""
        base: Params = {}
        for profile in typical.values():
            base |= {name: value for name, value in method.view(state, profile).params.items() if counts(name)}
        return base

    def aligning(exchange: Exchange) -> Exchange:
        def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
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
                moved, made = aligned_step(base, gathered.gradients(), settings, draws_of(state))
                result.append(made)
                if made.gradient:
                    yield replace(last, params=select(moved, made.gradient.keys()))

            after = exchange.merge(state, given())
            return {**after, **next_record(state, result[0], names)}

        return exchange._replace(merge=merge)

    exchanges = tuple(aligning(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, report=lambda s: {**method.report(s), **reported(s)})


def _steps(reply: Reply, profile: Profile, local_steps: Callable[[Profile], int] | None) -> float:
    """How many optimizer steps a reply is counted for."""
    if local_steps is None:
        return max(1.0, reply.metrics.get("steps", 1.0))
    # for as many examples as it weighs: it might have announced any number
    return float(local_steps(replace(profile, num_examples=math.ceil(reply.weight))))


# What the server's state has of it ------------------------------------------------------------


def first_record(names: Sequence[str], rng: Rng) -> dict[str, Any]:
    """What a server that aligns groups of these names has in its state as it begins, see ``with_alignment``."""
    return {"conflicts": 0, "cosines": _flat(None, names), ALIGN: {"seed": rng.integer(), "merges": 0}}


def reported(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of an alignment a round's record holds."""
    return {"conflicts": state["conflicts"], "cosines": state["cosines"]}


def draws_of(state: Mapping[str, Any]) -> Rng:
    """The stream of the next alignment."""
    return Rng(state[ALIGN]["seed"]).child("merge", state[ALIGN]["merges"])


def next_record(state: Mapping[str, Any], made: Aligned, names: Sequence[str]) -> dict[str, Any]:
    """What is in the state after an alignment that drew from ``draws_of(state)``."""
    own = {**state[ALIGN], "merges": state[ALIGN]["merges"] + 1}
    return {"conflicts": made.conflicts, "cosines": _flat(made, names), ALIGN: own}


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
