"""Groups of a federation with their models, adapters, data and clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fedquilt.adapters.buffers import state_of
from fedquilt.adapters.kind import Host, Kind, Put
from fedquilt.adapters.lora.inject import trainable
from fedquilt.adapters.registry import KINDS
from fedquilt.client.client import Client
from fedquilt.client.public import PublicInputs
from fedquilt.client.task import scoring_of
from fedquilt.client.workbench import Workbench
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.factors import cut
from fedquilt.core.federation import Federation
from fedquilt.core.rng import Rng
from fedquilt.core.server import SERVER
from fedquilt.core.training import num_steps
from fedquilt.core.types import Budget, ClientId, Layout, Params, Profile
from fedquilt.data.table import Columns, num_rows, take
from fedquilt.experiment.bases import has_bfloat16
from fedquilt.experiment.buffers import buffers_of
from fedquilt.experiment.cut_rows import lost_of
from fedquilt.experiment.data import AssignedRows
from fedquilt.experiment.data_of_groups import DataSource
from fedquilt.experiment.method import lowrank_rule, tensor_rule
from fedquilt.experiment.on_demand import OnDemand
from fedquilt.experiment.prompt_checks import answering_of, language_of
from fedquilt.experiment.public_inputs import public_rows
from fedquilt.experiment.trial_pass import try_out, try_recomputing
from fedquilt.models.loaded import Loaded
from fedquilt.models.trial_batch import example

NO_ROWS: Columns = {"labels": torch.zeros(0, dtype=torch.long)}
_ONE: Columns = {"labels": torch.zeros(1, dtype=torch.long)}


@dataclass(frozen=True)
class BuiltGroup:
    """One group of a federation; without [[groups]] there is one group with an empty label.

    Groups of one architecture train one adapter together and share ``loaded``, ``put`` and ``bench``.

    Attributes
    ----------
    label : the name of the group.
    ids : the numbers of its clients.
    config : the config of a federation of only these clients.
    architecture : the name of its architecture.
    loaded : its model.
    put : the adapter in it.
    bench : the workbench that its clients train on.
    server : the server's own client for the group; its test rows are those of the group's evaluation.
    lost : counts of truncated rows.
    """

    label: str
    ids: range
    config: Config
    architecture: str
    loaded: Loaded
    put: Put
    bench: Workbench
    server: Client
    lost: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return self.bench.layout

    @property
    def kind(self) -> Kind:
        """The kind of its adapters."""
        return KINDS[self.config.adapter.kind]


@dataclass(frozen=True)
class Work:
    """What groups of one architecture share: the model with adapters in it, and the initial tensors."""

    loaded: Loaded
    put: Put
    bench: Workbench
    first: Params


class EncodedRows:
    """The rows of each group, encoded for its model; without data (None) there are none."""

    def __init__(self, assigned: Sequence[tuple[DataSource, AssignedRows]] | None) -> None:
        self._assigned = assigned
        self._encoded: dict[tuple[str, int], Columns] = {}

    @property
    def known(self) -> bool:
        return self._assigned is not None

    def of(self, part: Part, work: Work) -> tuple[Columns, AssignedRows]:
        """The encoded rows of the group's source, and their assignment to clients."""
        assigned = next(rows for source, rows in self._assigned or () if part in source.parts)
        key = work.bench.layout.architecture, id(assigned)
        if key not in self._encoded:
            self._encoded[key] = NO_ROWS if assigned.table is None else work.loaded.encode(assigned.table)
        return self._encoded[key], assigned


def host_of(config: Config, loaded: Loaded, architecture: str, depths: Mapping[str, int]) -> Host:
    """The model of an architecture as input of its kind of adapter.

    ``depths`` are the numbers of blocks of all architectures, by name.
    """
    head = tuple(loaded.head)
    return Host(
        loaded.model,
        loaded.blocks,
        architecture,
        number=[*depths].index(architecture),
        num_architectures=len(depths),
        fewest_layers=min(depths.values()),
        head=head,
        trained_head=() if config.head.policy == "frozen" else head,
        fresh_head=loaded.fresh_head,
        targets=loaded.targets,
        task=config.model.task,
        classes=loaded.outputs.classes,
        state=state_of(loaded.model, example(loaded.model, loaded.prepare)),
    )


def work_of(config: Config, loaded: Loaded, host: Host, device: torch.device, rng: Rng) -> Work:
    """Put the adapters into the model, on the device.

    Parameters
    ----------
    config
        The config of a group of this architecture.
    loaded, host
        The model, and what the kind of adapter knows of it (``host_of``).
    device
        Where to train; on the meta device tensors have shapes only.
    rng
        The run's random stream; initial tensors are drawn from ``rng.child("init")``.
    """
    kind = KINDS[config.adapter.kind]
    put = kind.put(config.adapter, host)
    bench = Workbench(
        loaded.model,
        loaded.blocks,
        put.layout,
        trainable(loaded.model, put.layout),
        loaded.prepare,
        scoring=scoring_of(config.model.task),
        device=device,
        precision=precision_of(config),
        state=host.state,
        longest=loaded.reading.longest,
        pads_left=loaded.reading.pads_left,
    )
    if put.common is not None:
        rows = None if device.type == "meta" else public_rows(config, loaded)
        bench.public = PublicInputs(
            loaded.model, put.common, config.axes, bench.device, loaded.prepare, rows, rng.child("public")
        )
    if device.type == "meta" and not kind.trains_base:  # shapes need no values, and no memory for them
        first: Params = {name: torch.empty(shape, device=device) for name, shape in put.layout.shapes.items()}
    else:
        first = put.start(rng.child("init"))
    return Work(loaded, put, bench, first)


class Built(NamedTuple):
    """A group, the profiles of its clients, and those clients whose rows are on this machine."""

    group: BuiltGroup
    profiles: list[Profile]
    clients: Mapping[ClientId, Client]


def built(part: Part, work: Work, budgets: Sequence[Budget], rows_of: EncodedRows, rng: Rng) -> Built:
    """A group with its clients; a profile says that a client has no examples if its rows are elsewhere.

    Parameters
    ----------
    part
        The group's config and numbers of clients.
    work
        The model of its architecture, with adapters.
    budgets
        The budgets of its clients, in their order.
    rows_of
        The encoded rows of all groups.
    rng
        The run's random stream; the rows of a limited evaluation are drawn from it.
    """
    config, architecture = part.config, work.bench.layout.architecture
    whole = Budget(work.bench.layout.num_layers)
    initial = {rank: cut(work.first, rank) for rank in {budget.rank for budget in (whole, *budgets)}}
    chat = config.server is not None and config.server.chat
    answering, lost, language = None, dict[str, Any](), language_of(work.loaded, chat=chat)

    def profile_of(id: ClientId, budget: Budget, examples: int) -> Profile:
        return Profile(id, examples, architecture, budget, config.model.task, part.label)

    def client(profile: Profile, train: Columns, **held_out: Columns) -> Client:
        own, size = initial[profile.budget.rank], config.evaluation.batch_size
        one = Client(profile, work.bench, own, config.training, config.rounds, train, held_out, size)
        return replace(one, answering=answering, language=language)

    if work.bench.device.type == "meta":  # shapes only: for a plan, or for a group without clients on this machine
        planned = 0 if rows_of.known else num_rows(_ONE)
        profiles = [profile_of(id, budget, planned) for id, budget in zip(part.ids, budgets, strict=True)]
        made = OnDemand(part.ids if planned else (), lambda id: client(profiles[id - part.first], _ONE))
        own = _ONE if config.data.proxy or part.is_server else NO_ROWS
        server = client(profile_of(SERVER, whole, num_rows(own)), own)
    else:
        rows, assigned = rows_of.of(part, work)
        test = None if assigned.test is None else work.loaded.encode(assigned.test)
        lost = lost_of(work.loaded.reading, rows, test, assigned, part.ids)
        evaluated = _evaluation_rows(test, assigned, rows, part, rng)
        common = assigned.test is not None and not config.partition.test_fraction
        answering = answering_of(config, work.loaded, assigned.table)
        here, examples = assigned.splits.num_train(part.ids)
        profiles = [profile_of(*one) for one in zip(part.ids, budgets, examples, strict=True)]

        def of_rows(id: ClientId) -> Client:
            split = assigned.splits[id]
            held_out = {
                "validation": take(rows, split.validation),
                "test": evaluated if common else take(rows, split.test),
            }
            return client(profiles[id - part.first], take(rows, split.train), **held_out)

        made = OnDemand(here, of_rows)
        server = client(profile_of(SERVER, whole, len(assigned.proxy)), take(rows, assigned.proxy), test=evaluated)
        if num_rows(rows):
            try_out(work.bench, rows, config.model.name)
            if config.training.packing and work.loaded.reading.try_packing:
                work.loaded.reading.try_packing()
            if config.training.gradient_checkpointing:
                try_recomputing(work.bench, work.first, rows, config.model.name)
    group = BuiltGroup(part.label, part.ids, config, architecture, work.loaded, work.put, work.bench, server, lost)
    return Built(group, profiles, made)


def federated(
    config: Config, profiles: tuple[Profile, ...], works: Mapping[str, Work], groups: Sequence[BuiltGroup]
) -> Federation:
    """The argument of the method's factory."""
    proxies: dict[str, Client] = {}
    for group in groups:
        if num_rows(group.server.train):
            proxies.setdefault(group.architecture, group.server)
    trainings = {group.label: group.server.training for group in groups}
    return Federation(
        profiles,
        {name: work.bench.layout for name, work in works.items()},
        {name: work.put.start for name, work in works.items()},
        config.rounds,
        {name: work.put.scaling for name, work in works.items()},
        proxies,
        tensor_rule(config, buffers_of(work.bench.layout for work in works.values())),
        lowrank_rule(config),
        {name: work.put.frozen for name, work in works.items() if work.put.frozen},
        lambda profile: num_steps(profile.num_examples, trainings[profile.group]),
        {
            name: work.bench.public.shapes(config.adapter.rank, example(work.loaded.model, work.loaded.prepare))
            for name, work in works.items()
            if work.bench.public is not None
        },
    )


def _evaluation_rows(test: Columns | None, assigned: AssignedRows, rows: Columns, part: Part, rng: Rng) -> Columns:
    """The rows of the group's evaluation: the common test set, or else the test rows of its clients on this machine."""
    if test is not None:
        evaluated = test
    else:
        own = (split.test for id, split in assigned.splits.items() if id in part.ids)
        evaluated = take(rows, np.concatenate([[], *own]))
    limit = part.config.evaluation.limit
    if limit is not None and num_rows(evaluated) > limit:
        kept = rng.child("evaluation").numpy().permutation(num_rows(evaluated))[:limit]
        evaluated = take(evaluated, np.sort(kept))
    return evaluated


def precision_of(config: Config) -> str:
    """The precision of passes on the config's device, also where only shapes are wanted."""
    wanted = config.training.precision
    return ("bf16" if has_bfloat16(config.device) else "fp32") if wanted == "auto" else wanted
