"""Planned cost of a vertical run: what each party sends and receives, in a round and besides, and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedquilt.client.client import Client
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Memory, Order, Params, Turn
from fedquilt.core.vertical import Vertical
from fedquilt.core.wire import num_wire_bytes
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.needs import ClientPlan, Measured, Plan, ServerPlan, base_bytes, needs_of
from fedquilt.vertical.active import ActiveState
from fedquilt.vertical.exchanges import PREDICT
from fedquilt.vertical.party import PROTOTYPES, party_of


def vertical_plan(experiment: Experiment) -> Plan:
    """The plan of a round that is evaluated, in which every party takes part; the active party's is the server's.

    All exchanges of the method run on shapes alone, so the counts are those of the tensors that would be sent.
    """
    vertical, owner = experiment.federation.vertical, experiment.owner
    assert vertical is not None
    assert owner is not None, "the active party is the server"
    last = experiment.config.rounds - 1  # it is always evaluated
    turn = Turn(last, experiment.federation.profiles, experiment.rng.child("round", last))
    state = experiment.method.init(experiment.rng.child("init"))
    moved: dict[tuple[ClientId, bool], tuple[int, int]] = {}
    memories: dict[ClientId, Memory] = {}
    for exchange in experiment.method.exchanges:
        replies = []
        for id, order in sorted(exchange.ask(state, turn).items()):
            reply, memories[id] = exchange.work(experiment.clients[id], order, memories.get(id, {}))
            key = id, exchange.name == PREDICT
            down, up = (num_wire_bytes(message.params, exchange.wire) for message in (order, reply))
            before = moved.get(key, (0, 0))
            moved[key] = before[0] + down, before[1] + up
            replies.append(reply)
        state = exchange.merge(state, replies) if replies else state
    measured: Measured = {}
    clients = [
        _party_plan(experiment, client, memories.get(id, {}), _minibatch(vertical), moved, measured)
        for id, client in sorted(experiment.clients.items())
    ]
    return Plan(clients, _active_plan(owner, vertical, cast(ActiveState, state), measured))


def _minibatch(vertical: Vertical) -> int:
    """Aligned rows of a pass of every party."""
    return min(party_of(vertical.active).training.batch_size, len(vertical.labels))


def _party_plan(
    experiment: Experiment,
    client: Client,
    memory: Memory,
    rows: int,
    moved: Mapping[tuple[ClientId, bool], tuple[int, int]],
    measured: Measured,
) -> ClientPlan:
    """The plan of a passive party.

    Parameters
    ----------
    experiment, client
        The experiment of shapes, and the party.
    memory
        What it remembers after the round; a party that learns nothing remembers nothing.
    rows
        Aligned rows of a pass.
    moved
        Bytes down and up by party, and whether they are of an evaluation.
    measured
        Keeps results.
    """
    id, group = client.profile.id, experiment.group_of(client.profile.id)
    (down, up), (tested_down, tested_up) = (moved.get((id, tested), (0, 0)) for tested in (False, True))
    beside = {PROTOTYPES: memory[PROTOTYPES]} if PROTOTYPES in memory else {}
    return ClientPlan(
        client=id,
        group=group.label,
        budget=client.profile.budget.layers,
        layers=tuple(range(client.profile.budget.layers)) if memory else (),
        num_classes=0,
        bytes_down=down,
        bytes_up=up,
        model_bytes=base_bytes(client, not group.kind.trains_base),
        evaluation_down=tested_down,
        evaluation_up=tested_up,
        **_needs(group, client, beside, rows if memory else 0, measured),
    )


def _active_plan(owner: BuiltGroup, vertical: Vertical, state: ActiveState, measured: Measured) -> ServerPlan:
    """The plan of the active party: its encoder, its prototypes and the joint model."""
    beside = {PROTOTYPES: state["own"]["prototypes"], **state["joint"]}
    needs = _needs(owner, party_of(vertical.active), beside, _minibatch(vertical), measured)
    return ServerPlan(architecture=owner.architecture, **needs)


def _needs(group: BuiltGroup, client: Client, beside: Params, rows: int, measured: Measured) -> dict[str, Any]:
    """The fields of ``Needs`` of a party that trains its encoder and the tensors ``beside`` it; 0 rows: nothing."""
    layout = client.bench.layout
    names = {*layout.depth} - client.frozen if rows else set()
    trained = {name: client.params(Order({}))[name] for name in sorted(names)}
    needs = needs_of(group, client, trained, None, rows, measured)
    size, states = num_bytes(beside), needs["optimizer_bytes"] // max(1, needs["gradient_bytes"])
    more = {
        "trained_parameters": sum(tensor.numel() for tensor in beside.values()),
        "weight_bytes": size,
        "gradient_bytes": size,
        "optimizer_bytes": states * size,
    }
    return {name: value + more.get(name, 0) for name, value in needs.items()}
