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
from fedquilt.core.wrap import with_local
from fedquilt.data.loaders import limited, load_table, published_split, require_labels, with_classes
from fedquilt.data.partition import partition
from fedquilt.data.split import Shares, carve_proxy, label_counts, split_clients, split_digest
from fedquilt.data.table import Columns, Table, num_rows, take
from fedquilt.methods import METHODS
from fedquilt.models.hf import Loaded, load_model

SERVER: ClientId = -1
"""The id of the server's own client, which is no partition number."""


@dataclass(frozen=True)
class Dealt:
    """The rows of a federation: the table, the separate test table if there is one, and who holds which rows."""

    table: Table
    test: Table | None
    splits: tuple[Shares, ...]
    proxy: np.ndarray


@dataclass(frozen=True)
class Experiment:
    """Everything that a run, a plan or an export needs. ``judge`` scores the global model; None if nobody holds test rows."""

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
    rng = Rng(config.seed)
    dealt = deal(config, rng)
    budgets = groups(shares(config.clients.shares), config.clients.budgets, config.partition.num_clients)
    num_classes = len(dealt.table.classes) or None
    check_budgets(config.clients.budgets, _load(config, num_classes, rng, meta=True).blocks.num_layers)
    loaded = _load(config, num_classes, rng)
    return _joined(config, factory, settings, loaded, budgets, dealt, rng)


def check(config: Config) -> list[str]:
    """Every problem of a config, found without loading weights: settings, data, split, model shape, budgets, method."""
    problems: list[str] = []
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
    dealt = attempt(lambda: deal(config, rng))
    budgets = attempt(
        lambda: groups(shares(config.clients.shares), config.clients.budgets, config.partition.num_clients)
    )
    num_classes = len(dealt.table.classes) or None if dealt else None
    loaded = attempt(lambda: _load(config, num_classes, rng, meta=True))
    if loaded:
        attempt(lambda: check_budgets(config.clients.budgets, loaded.blocks.num_layers))
    attempt(lambda: device_of(config.device))
    if method and dealt and budgets and loaded and not problems:
        attempt(lambda: _joined(config, *method, loaded, budgets, dealt, rng, meta=True))
    return problems


def shaped(config: Config, rows_per_client: int = 1) -> Experiment:
    """The experiment on the meta device, without data: shapes only, for a plan."""
    factory, settings = _method_arguments(config)
    rng = Rng(config.seed)
    budgets = groups(shares(config.clients.shares), config.clients.budgets, config.partition.num_clients)
    loaded = _load(config, None, rng, meta=True)
    check_budgets(config.clients.budgets, loaded.blocks.num_layers)
    return _joined(config, factory, settings, loaded, budgets, None, rng, meta=True)


def deal(config: Config, rng: Rng) -> Dealt:
    """The data read and dealt: proxy rows for the server, then each client's train, validation and test rows.

    The split depends on the seed and the [data] and [partition] sections alone, so all methods of a comparison share it.
    """
    data, wanted = config.data, config.partition
    columns = {"text": data.text, "pair": data.pair, "label": data.label, "target": data.target}
    columns |= {"image": data.image, "group": data.group}
    table, test = published_split(load_table(data.source, **columns))
    if data.test is not None:
        test = load_table(data.test, **columns)
    table = limited(table, data.limit, rng.child("data"))
    if config.model.task != "causal-lm":
        require_labels(table, data.source)
    if test is not None:
        test = limited(test, data.test_limit, rng.child("test data"))
        if config.model.task != "causal-lm":
            require_labels(test, data.test or data.source)
            test = with_classes(test, table.classes, data.test or data.source)
    labels = None if table.labels is None else table.labels.numpy()
    parts = partition(
        wanted.scheme,
        labels,
        wanted.num_clients,
        rng.child("partition"),
        groups=None if table.groups is None else table.groups.numpy(),
        num_examples=len(table),
        **wanted.settings,
    )
    proxy, parts = carve_proxy(parts, labels, data.proxy, rng.child("proxy"))
    splits = split_clients(
        parts,
        labels,
        rng.child("split"),
        test_fraction=wanted.test_fraction,
        validation_fraction=wanted.validation_fraction,
    )
    return Dealt(table, test, splits, proxy)


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
    dealt: Dealt | None,
    rng: Rng,
    *,
    meta: bool = False,
) -> Experiment:
    lora = LoraSettings(
        **config.adapter.model_dump(exclude={"targets"}), targets=config.adapter.targets or loaded.targets
    )
    head = () if config.head.policy == "frozen" else loaded.head
    inject(loaded.model, loaded.blocks, lora, lora.targets, head)
    where = layout(loaded.model, loaded.blocks, loaded.architecture, head)
    device = torch.device("meta") if meta else device_of(config.device)
    bench = Workbench(
        loaded.model,
        loaded.blocks,
        where,
        trainable(loaded.model, where),
        loaded.prepare,
        device=device,
        precision=_precision(config.training.precision, device),
    )

    start = initial(where, loaded.model)
    training = Training(**config.training.model_dump(exclude={"precision"}))
    first = start(rng.child("init"))

    def client(id: ClientId, budget: int, train: Columns, **held_out: Columns) -> Client:
        profile = Profile(id, num_rows(train), loaded.architecture, Budget(budget), config.model.task)
        return Client(profile, bench, first, training, config.rounds, train, held_out, config.evaluation.batch_size)

    if dealt is None or meta:
        empty: Columns = {"labels": torch.zeros(1, dtype=torch.long)}
        clients = {id: client(id, budget.layers, empty) for id, budget in enumerate(budgets)}
        server = client(SERVER, where.num_layers, empty) if config.data.proxy else None
        judge, record = None, {}
    else:
        rows = loaded.encode(dealt.table)
        clients = {
            id: client(
                id,
                budget.layers,
                take(rows, split.train),
                validation=take(rows, split.validation),
                test=take(rows, split.test),
            )
            for id, (budget, split) in enumerate(zip(budgets, dealt.splits, strict=True))
        }
        server = client(SERVER, where.num_layers, take(rows, dealt.proxy)) if len(dealt.proxy) else None
        judged = _judged(loaded, dealt, rows, config, rng)
        judge = None if judged is None else client(SERVER, where.num_layers, take(rows, np.arange(0)), test=judged)
        record = _partition_record(dealt, clients)
    profiles = tuple(held.profile for held in clients.values())
    federation = Federation(profiles, {loaded.architecture: where}, {loaded.architecture: start}, config.rounds, server)
    method = factory(federation, **settings)
    if config.head.policy == "local":
        method = with_local(method, where.head)
    return Experiment(config, federation, method, clients, judge, loaded, lora, where, record)


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


def _partition_record(dealt: Dealt, clients: dict[ClientId, Client]) -> dict[str, Any]:
    labels = None if dealt.table.labels is None else dealt.table.labels.numpy()
    counts = label_counts([split.train for split in dealt.splits], labels, dealt.table.classes)
    return {
        "digest": split_digest(dealt.splits, dealt.proxy),
        "classes": list(dealt.table.classes),
        "proxy": dealt.proxy.tolist(),
        "clients": [
            {
                "id": id,
                "architecture": held.profile.architecture,
                "budget": held.profile.budget.layers,
                "task": held.profile.task,
                "train": split.train.tolist(),
                "validation": split.validation.tolist(),
                "test": split.test.tolist(),
                "labels": count,
            }
            for (id, held), split, count in zip(clients.items(), dealt.splits, counts, strict=True)
        ],
    }
