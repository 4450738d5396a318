"""From a config to clients, a federation and a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedquilt.adapters.inject import initial, inject, layout, trainable
from fedquilt.adapters.lora import LoraSettings
from fedquilt.allocate.budget import check_budgets, groups, shares
from fedquilt.client.client import Client
from fedquilt.client.fit import Training
from fedquilt.client.workbench import Workbench
from fedquilt.config.build import arguments
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError, suggestion
from fedquilt.core.factors import cut
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, ClientId, Federation, Layout, Profile
from fedquilt.core.wire import with_wire_dtype
from fedquilt.core.wrap import with_local, with_received_scores
from fedquilt.data.partition import settings_problems
from fedquilt.data.table import Columns, Table, num_rows, take
from fedquilt.experiment.changes import changed, refuse_changes
from fedquilt.experiment.deal import (
    NODE,
    SITES,
    Dealt,
    announced_record,
    deal,
    num_classes_here,
    partition_record,
    read,
)
from fedquilt.experiment.protect import family_of, protected, refuse_contradictions, rule_of
from fedquilt.methods import METHODS
from fedquilt.models.hf import Loaded, load_model

SERVER: ClientId = -1
"""The id of the server's own client, which is no partition number."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a run, a plan or an export needs.

    ``clients`` are those whose rows are here. ``server`` is the server's own client: its training rows are the proxy
    set, its test rows those of the global evaluation; it may have neither. ``make_method`` makes the method for a
    federation.
    """

    config: Config
    federation: Federation
    make_method: Callable[[Federation], Method]
    method: Method
    clients: dict[ClientId, Client]
    server: Client
    loaded: Loaded
    lora: LoraSettings
    layout: Layout
    partition: dict[str, Any]

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed)

    def announced(self, examples: Mapping[ClientId, int]) -> Experiment:
        """The experiment when the clients have said how many training rows each has."""
        if not examples:
            return self
        profiles = tuple(replace(profile, num_examples=examples[profile.id]) for profile in self.federation.profiles)
        federation = replace(self.federation, profiles=profiles)
        method = self.make_method(federation)
        return replace(self, federation=federation, method=method, partition=announced_record(profiles))


def build(config: Config, here: Collection[ClientId] | None = None) -> Experiment:
    """The experiment of a config; data is dealt and the method checked before the model's weights are loaded.

    ``here`` are the clients whose rows are on this machine where each client has a source of its own: one for a client,
    none for the server, all for None. Clients that are not here have profiles without a number of examples.

    Raises
    ------
    FedquiltError
        of the kind that fits: ConfigError, DataError or ModelError.
    """
    factory, settings = _method_arguments(config)
    device_of(config.device)
    rng = Rng(config.seed)
    if config.partition.scheme != SITES:
        here = None
    dealt = deal(config, *read(config, rng, here), rng, here)
    budgets = _budgets(config)
    num_classes = _num_classes(config, dealt.table)
    shape = _load(config, num_classes, rng, meta=True)
    check_budgets(config.clients.budgets, shape.blocks.num_layers)
    _joined(config, factory, settings, shape, budgets, rng)  # what is wrong shows before weights load
    loaded = _load(config, num_classes, rng)
    return _joined(config, factory, settings, loaded, budgets, rng, dealt)


def check(
    config: Config,
    tables: dict[str, tuple[Table | None, Table | None]] | None = None,
    here: Collection[ClientId] | None = None,
) -> list[str]:
    """Every problem of a config, found without loading weights: settings, data, split, model shape, budgets, method.

    ``tables``, if given, keeps the data that was read, so that checking configs with the same [data] reads it once.
    ``here`` are the clients whose own rows are on this machine, all for None.
    """
    problems: list[str] = []
    tables = {} if tables is None else tables
    rng = Rng(config.seed)

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
        except FedquiltError as error:
            problems.append(str(error))
        return None

    method = attempt(lambda: _method_arguments(config))
    problems += settings_problems(config.partition.scheme, config.partition.settings)
    splittable = not any(problem.startswith("partition.") for problem in problems)
    key = f"{config.data!r} {config.partition!r} {config.model.task} {config.seed}"
    if here is None and config.data.source == NODE and config.partition.scheme == SITES:
        here = ()
    if key not in tables and (data := attempt(lambda: read(config, rng, here))):
        tables[key] = data
    if key in tables and splittable:
        attempt(lambda: deal(config, *tables[key], rng, here))
    budgets = attempt(lambda: _budgets(config))
    num_classes = _num_classes(config, tables[key][0]) if key in tables else None
    loaded = attempt(lambda: _load(config, num_classes, rng, meta=True))
    attempt(lambda: device_of(config.device))
    if loaded:
        depth = loaded.blocks.num_layers
        attempt(lambda: check_budgets(config.clients.budgets, depth))
        if method and budgets:  # with budgets that fit: whatever else the method minds is told too
            factory, settings = method
            fitting = [replace(budget, layers=min(budget.layers, depth)) for budget in budgets]
            attempt(lambda: _joined(config, factory, settings, loaded, fitting, rng))
    return list(dict.fromkeys(problems))


def shaped(config: Config) -> Experiment:
    """The experiment on the meta device: shapes only, for a plan. The data, if it is here, tells how many classes."""
    factory, settings = _method_arguments(config)
    rng = Rng(config.seed)
    budgets = _budgets(config)
    loaded = _load(config, num_classes_here(config), rng, meta=True)
    check_budgets(config.clients.budgets, loaded.blocks.num_layers)
    return _joined(config, factory, settings, loaded, budgets, rng)


def num_layers(config: Config) -> int:
    """The number of transformer blocks of the config's model; no weights are loaded."""
    return _load(config, num_classes_here(config), Rng(config.seed), meta=True).blocks.num_layers


def device_of(name: str) -> torch.device:
    """The torch device of a config's ``device``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises
    ------
    ConfigError
        if the device is not there.
    """
    found = [kind for kind, there in (("cuda", torch.cuda.is_available()), ("mps", _has_mps())) if there] + ["cpu"]
    if name == "auto":
        return torch.device(found[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in found:
        raise ConfigError(f"device = '{name}': not on this machine; allowed here: auto, {', '.join(found)}")
    return device


def _num_classes(config: Config, table: Table | None) -> int | None:
    """How many outputs a classifier needs; None for a language model."""
    classes = (config.data.classes or ()) if table is None else table.classes
    return len(classes) or None


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _method_arguments(config: Config) -> tuple[Callable[..., Method], dict[str, Any]]:
    name = config.method.name
    if name not in METHODS:
        raise ConfigError(
            f"method.name = '{name}': unknown method{suggestion(name, [*METHODS])}; allowed: {', '.join(METHODS)}"
        )
    factory = METHODS[name]
    return factory, arguments(factory, config.method.settings, prefix="method")


def _budgets(config: Config) -> tuple[Budget, ...]:
    clients = config.clients
    return groups(shares(clients.shares), clients.budgets, config.partition.num_clients, ranks=clients.ranks)


def _load(config: Config, num_classes: int | None, rng: Rng, *, meta: bool = False) -> Loaded:
    model = config.model
    return load_model(
        model.name,
        model.task,
        num_classes=num_classes,
        rng=rng.child("model"),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        meta=meta,
        max_length=model.max_length,
    )


def _joined(
    config: Config,
    factory: Callable[..., Method],
    settings: dict[str, Any],
    loaded: Loaded,
    budgets: Sequence[Budget],
    rng: Rng,
    dealt: Dealt | None = None,
) -> Experiment:
    """Model, clients, federation and method put together; without ``dealt`` all is shapes, on the meta device."""
    bench, lora = _workbench(config, loaded, torch.device("meta") if dealt is None else device_of(config.device))
    start = initial(bench.layout, loaded.model)
    training = Training(**config.training.model_dump(exclude={"precision", "proximal"}))
    first = start(rng.child("init"))
    depth = bench.layout.num_layers

    def client(id: ClientId, budget: Budget, train: Columns, **held_out: Columns) -> Client:
        profile = Profile(id, num_rows(train), loaded.architecture, budget, config.model.task)
        own, size = cut(first, budget.rank), config.evaluation.batch_size
        return Client(profile, bench, own, training, config.rounds, train, held_out, size)

    none: Columns = {"labels": torch.zeros(0, dtype=torch.long)}
    one: Columns = {"labels": torch.zeros(1, dtype=torch.long)}
    record: dict[str, Any] = {}
    if dealt is None:
        clients = {id: client(id, budget, one) for id, budget in enumerate(budgets)}
        server = client(SERVER, Budget(depth), one if config.data.proxy else none)
    else:
        rows = none if dealt.table is None else loaded.encode(dealt.table)
        clients = {}
        for id, split in dealt.splits.items():
            held_out = {"validation": take(rows, split.validation), "test": take(rows, split.test)}
            clients[id] = client(id, budgets[id], take(rows, split.train), **held_out)
        judged = _judged(loaded, dealt, rows, config, rng)
        server = client(SERVER, Budget(depth), take(rows, dealt.proxy), test=judged)
    profiles = tuple(
        clients[id].profile if id in clients else Profile(id, 0, loaded.architecture, budget, config.model.task)
        for id, budget in enumerate(budgets)
    )
    if dealt is not None and len(clients) == len(profiles):
        record = partition_record(dealt, profiles)
    architecture = loaded.architecture
    federation = Federation(
        profiles,
        {architecture: bench.layout},
        {architecture: start},
        config.rounds,
        server if num_rows(server.train) else None,
        rule_of(config),
        lora.scaling,
        family_of(config),
    )
    refuse_contradictions(config, settings)
    refuse_changes(config)

    def make_method(federation: Federation) -> Method:
        method = changed(config, factory(federation, **settings))
        if config.head.policy == "local":
            method = with_local(method, bench.layout.head)
        if config.evaluation.clients == "received":
            method = with_received_scores(method)
        method = protected(config, method)  # outermost but for rounding, which makes something of its output alone
        if config.network.dtype == "float32":
            return method
        # with secret cohorts, epsilon is of clients whose updates do not depend on earlier cohorts
        return with_wire_dtype(method, config.network.dtype, feedback=config.privacy.mode != "central")

    method = make_method(federation)
    return Experiment(config, federation, make_method, method, clients, server, loaded, lora, bench.layout, record)


def _workbench(config: Config, loaded: Loaded, device: torch.device) -> tuple[Workbench, LoraSettings]:
    """The model with its adapters in it, on the device."""
    targets = config.adapter.targets or loaded.targets
    lora = LoraSettings(**config.adapter.model_dump(exclude={"targets"}), targets=targets)
    head = () if config.head.policy == "frozen" else loaded.head
    inject(loaded.model, loaded.blocks, lora, lora.targets, head)
    where = layout(loaded.model, loaded.blocks, loaded.architecture, head)
    bench = Workbench(
        loaded.model,
        loaded.blocks,
        where,
        trainable(loaded.model, where),
        loaded.prepare,
        device=device,
        precision=_precision(config.training.precision, device),
    )
    return bench, lora


def _judged(loaded: Loaded, dealt: Dealt, rows: Columns, config: Config, rng: Rng) -> Columns:
    """The rows of the global evaluation: the separate test set, or else the test rows of all clients that are here."""
    if dealt.test is not None:
        judged = loaded.encode(dealt.test)
    else:
        judged = take(rows, np.concatenate([[], *(split.test for split in dealt.splits.values())]))
    limit = config.evaluation.limit
    if limit is not None and num_rows(judged) > limit:
        kept = rng.child("evaluation").numpy().permutation(num_rows(judged))[:limit]
        judged = take(judged, np.sort(kept))
    return judged


def _precision(wanted: str, device: torch.device) -> str:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16" if fast else "fp32") if wanted == "auto" else wanted
