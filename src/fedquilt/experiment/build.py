"""From a config to clients, a federation and a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, ClientId, Federation, Layout, Profile
from fedquilt.core.wrap import with_local, with_received_scores
from fedquilt.data.partition import settings_problems
from fedquilt.data.table import Columns, Table, num_rows, take
from fedquilt.experiment.deal import Dealt, deal, num_classes_here, partition_record, read
from fedquilt.experiment.protect import protected, refuse_contradictions, rule_of
from fedquilt.methods import METHODS
from fedquilt.models.hf import Loaded, load_model

SERVER: ClientId = -1
"""The id of the server's own client, which is no partition number."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a run, a plan or an export needs.

    ``judge`` scores the global model; None if nobody holds test rows.
    """

    config: Config
    federation: Federation
    method: Method
    clients: dict[ClientId, Client]
    judge: Client | None
    loaded: Loaded
    lora: LoraSettings
    layout: Layout
    partition: dict[str, Any]

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed)


def build(config: Config) -> Experiment:
    """The experiment of a config; data is dealt and the method checked before the model's weights are loaded.

    Raises
    ------
    FedquiltError
        of the kind that fits: ConfigError, DataError or ModelError.
    """
    factory, settings = _method_arguments(config)
    device_of(config.device)
    rng = Rng(config.seed)
    dealt = deal(config, *read(config, rng), rng)
    budgets = _budgets(config)
    num_classes = len(dealt.table.classes) or None
    shape = _load(config, num_classes, rng, meta=True)
    check_budgets(config.clients.budgets, shape.blocks.num_layers)
    _joined(config, factory, settings, shape, budgets, rng)  # what is wrong shows before weights load
    loaded = _load(config, num_classes, rng)
    return _joined(config, factory, settings, loaded, budgets, rng, dealt)


def check(config: Config, tables: dict[str, tuple[Table, Table | None]] | None = None) -> list[str]:
    """Every problem of a config, found without loading weights: settings, data, split, model shape, budgets, method.

    ``tables``, if given, keeps the data that was read, so that checking configs with the same [data] reads it once.
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
    key = f"{config.data!r} {config.model.task} {config.seed}"
    if key not in tables and (data := attempt(lambda: read(config, rng))):
        tables[key] = data
    if key in tables and splittable:
        attempt(lambda: deal(config, *tables[key], rng))
    budgets = attempt(lambda: _budgets(config))
    num_classes = len(tables[key][0].classes) or None if key in tables else None
    loaded = attempt(lambda: _load(config, num_classes, rng, meta=True))
    attempt(lambda: device_of(config.device))
    if loaded:
        depth = loaded.blocks.num_layers
        attempt(lambda: check_budgets(config.clients.budgets, depth))
        if method and budgets:  # with budgets that fit: whatever else the method minds is told too
            factory, settings = method
            fitting = [Budget(min(budget.layers, depth)) for budget in budgets]
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
    return groups(shares(config.clients.shares), config.clients.budgets, config.partition.num_clients)


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
    training = Training(**config.training.model_dump(exclude={"precision"}))
    first = start(rng.child("init"))
    depth = bench.layout.num_layers

    def client(id: ClientId, budget: int, train: Columns, **held_out: Columns) -> Client:
        profile = Profile(id, num_rows(train), loaded.architecture, Budget(budget), config.model.task)
        return Client(profile, bench, first, training, config.rounds, train, held_out, config.evaluation.batch_size)

    judge, record = None, {}
    if dealt is None:
        one: Columns = {"labels": torch.zeros(1, dtype=torch.long)}
        clients = {id: client(id, budget.layers, one) for id, budget in enumerate(budgets)}
        server = client(SERVER, depth, one) if config.data.proxy else None
    else:
        rows = loaded.encode(dealt.table)
        clients = {}
        for id, (budget, split) in enumerate(zip(budgets, dealt.splits, strict=True)):
            held_out = {"validation": take(rows, split.validation), "test": take(rows, split.test)}
            clients[id] = client(id, budget.layers, take(rows, split.train), **held_out)
        server = client(SERVER, depth, take(rows, dealt.proxy)) if len(dealt.proxy) else None
        judged = _judged(loaded, dealt, rows, config, rng)
        judge = None if judged is None else client(SERVER, depth, take(rows, []), test=judged)
        record = partition_record(dealt, [held.profile for held in clients.values()])
    profiles = tuple(held.profile for held in clients.values())
    architecture = loaded.architecture
    federation = Federation(
        profiles, {architecture: bench.layout}, {architecture: start}, config.rounds, server, rule_of(config)
    )
    refuse_contradictions(config, settings)
    method = factory(federation, **settings)
    if config.head.policy == "local":
        method = with_local(method, bench.layout.head)
    if config.evaluation.clients == "received":
        method = with_received_scores(method)
    method = protected(config, method)  # outermost, so that it sees exactly what leaves the client
    return Experiment(config, federation, method, clients, judge, loaded, lora, bench.layout, record)


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


def _judged(loaded: Loaded, dealt: Dealt, rows: Columns, config: Config, rng: Rng) -> Columns | None:
    """The rows of the global evaluation: the separate test set, or else all clients' test rows together."""
    if dealt.test is not None:
        judged = loaded.encode(dealt.test)
    else:
        judged = take(rows, np.concatenate([split.test for split in dealt.splits]))
    limit = config.evaluation.limit
    if limit is not None and num_rows(judged) > limit:
        kept = rng.child("evaluation").numpy().permutation(num_rows(judged))[:limit]
        judged = take(judged, np.sort(kept))
    return judged if num_rows(judged) else None


def _precision(wanted: str, device: torch.device) -> str:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16" if fast else "fp32") if wanted == "auto" else wanted
