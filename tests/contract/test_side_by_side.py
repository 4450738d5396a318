"""Every method trains its clients side by side as it does in turn, up to the rounding of sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from promises import Setup, tensors
from test_contract import ADAPTED, APART, CHANGED, REAL

from fedquilt.client.stacked import together
from fedquilt.core.loop import rounds
from fedquilt.core.rng import Rng
from fedquilt.engine.local import LocalEngine

BUILDS = {name: row.build for name, row in (REAL | APART).items()} | CHANGED | ADAPTED
BUILDS = {name: build for name, build in BUILDS.items() if not name.startswith("fedavg")}  # a toy has no such clients
NOBODY = {
    *(name for name in BUILDS if name.startswith(("vfl-", "proto-evfl"))),  # parties train by steps of their own
    "heterotune-common-apart",  # each part is trained as if the other were not there
}
"""Rows in which no two clients ask to be trained at the same time."""

COMMON, LEFT_OUT = "its adapters are in common coordinates", "blocks of its model are left out"
ALONE = {
    **dict.fromkeys((name for name in BUILDS if "-common" in name or name.startswith("co-lora")), COMMON),
    **dict.fromkeys(("fedsa-lora-common-head", "h2tune-common-ends"), ""),
    **dict.fromkeys((name for name in BUILDS if name.startswith("fedra") and name != "fedra-whole"), LEFT_OUT),
    **dict.fromkeys(("lada", "fedmkt", "fedcot"), "a term of its loss runs the model"),
    **dict.fromkeys(NOBODY, ""),
    "exclusive-dora": "no other client can be trained beside it",  # a single one takes part
}
"""Why clients of these rows are trained alone."""


class Played(NamedTuple):
    """The tensors of the state and the memories after a round, what clients told, and why some trained alone."""

    tensors: list[Any]
    metrics: list[Any]
    alone: dict[int, str]


def played(setup: Setup, width: int) -> Played:
    setup = setup.bound()
    engine = LocalEngine(setup.clients)
    engine.width = width
    (done,) = rounds(setup.method, lambda number: setup.profiles, engine.send, Rng(5), num_rounds=1)
    told = [moved.metrics for moved in done.traffic]
    return Played(tensors([done.state, engine.memories]), told, engine.in_turn)


@pytest.mark.parametrize("row", BUILDS)
def test_side_by_side_is_in_turn_up_to_rounding(row, monkeypatch):
    stacks = []
    made = together.trained_together
    monkeypatch.setattr(together, "trained_together", lambda jobs, **more: stacks.append(jobs) or made(jobs, **more))
    turn, both = played(BUILDS[row](), 1), played(BUILDS[row](), 10)
    if why := ALONE.get(row):
        assert not stacks
        assert all(why in told for told in both.alone.values())
        assert both.alone
    else:
        assert not both.alone
        assert bool(stacks) == (row not in NOBODY)
    assert not turn.alone
    for one, other in zip(turn.tensors, both.tensors, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).abs().max() < 1e-5 if one.numel() else True
    for one, other in zip(turn.metrics, both.metrics, strict=True):
        assert one.keys() == other.keys()
        for client, told in one.items():
            assert other[client] == pytest.approx(told, rel=1e-4, abs=1e-5)
