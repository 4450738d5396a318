"""A small federation of real clients: a transformer of a few blocks with adapters in it, random rows, unlike budgets.

Used by the contract's table and by the tests of ``client``, ``methods`` and ``engine``. A training step takes a few
milliseconds. Every federation has a model of its own, so that no test sees what another left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from fedquilt.adapters.common.anchored_kind import ANCHORED
from fedquilt.adapters.common.kind import COMMON
from fedquilt.adapters.common.settings import Axes
from fedquilt.adapters.kind import Host, Kind
from fedquilt.adapters.lora.inject import all_linear, initial, inject, layout, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.mixture.kind import MIXTURE
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.client import Client, Training, Workbench
from fedquilt.client.public import PublicInputs
from fedquilt.client.task import scoring_of
from fedquilt.client.workbench import Batch
from fedquilt.config.load import parse
from fedquilt.core.factors import MAGNITUDE, cut
from fedquilt.core.federation import Federation, Rule
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, ClientId, Layout, Params, Profile
from fedquilt.experiment import build
from fedquilt.experiment.build import Experiment
from fedquilt.methods import METHODS
from fedquilt.methods.across_architectures import mean_of, split, with_shared
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.models.hf import load_model
from fedquilt.models.loaded import Loaded

VIT = "tiny:vit?layers=4&width=8&image=4&patch=2"
WIDE = "tiny:vit?layers=3&width=16&image=4&patch=2"
LLAMA = "tiny:llama?layers=3&width=8"
BERT = "tiny:bert?layers=3&width=8"
GPT2 = "tiny:gpt2?layers=3&width=8"
CLASSES, TOKENS, LONGEST = 3, 260, 7
DATA = Rng(77).child("small federation")
SERVER = -1


class Small(NamedTuple):
    """A federation, its clients by id, and the workbench they share."""

    federation: Federation
    clients: Mapping[ClientId, Client]
    bench: Workbench

    @property
    def layout(self) -> Layout:
        return self.bench.layout


def task_of(model: str) -> str:
    """The task a model is used for here, unless a test says otherwise: LLaMA writes, the others classify."""
    if "vit" in model:
        return "image-classification"
    return "causal-lm" if "llama" in model else "sequence-classification"


_BASE: dict[str, Any] = {}


@contextmanager
def bases(**options: Any) -> Iterator[None]:
    """Federations that are made inside have bases of this ``dtype`` and ``quantization``."""
    _BASE.update(options)
    try:
        yield
    finally:
        _BASE.clear()


def _loaded(model: str, task: str) -> Loaded:
    return _read(model, task, frozenset(_BASE.items()))


@cache
def _read(model: str, task: str, options: frozenset[tuple[str, Any]]) -> Loaded:
    classes = None if task == "causal-lm" else CLASSES
    return load_model(model, task, num_classes=classes, rng=DATA.child("model"), **dict(options))


def workbench(
    model: str = VIT,
    task: str | None = None,
    *,
    rank: int = 2,
    dropout: float = 0.0,
    precision: str = "fp32",
    every: bool = False,
    dora: bool = False,
) -> Workbench:
    """A workbench with a model of its own: q and v adapted (or ``every`` linear module), the head, if any, trained."""
    loaded = _loaded(model, task or task_of(model))
    own = deepcopy(loaded.model)
    targets = all_linear(own, loaded.blocks) if every else loaded.targets
    inject(own, loaded.blocks, LoraSettings(rank, 2.0 * rank, dropout, use_dora=dora), targets, loaded.head)
    where = layout(own, loaded.blocks, loaded.architecture, loaded.head)
    cpu = torch.device("cpu")
    return Workbench(
        own,
        loaded.blocks,
        where,
        trainable(own, where),
        loaded.prepare,
        scoring=scoring_of(task or task_of(model)),
        device=cpu,
        precision=precision,
    )


def start_of(bench: Workbench, *, zero: bool = False) -> Params:
    """Values for every tensor of the layout, the same at every call; B is zero only if asked for.

    The head and magnitudes are drawn anew too: the model's own are what the last client left there.
    """
    params = initial(bench.layout, bench.model)(DATA.child("start"))
    for name in params:
        if name in bench.layout.head or (name.endswith("lora_B") and not zero):
            params[name] = 0.3 * torch.randn(params[name].shape, generator=DATA.child("value", name).torch())
        elif name.endswith(MAGNITUDE):
            params[name] = 0.5 + torch.rand(params[name].shape, generator=DATA.child("value", name).torch())
    return params


def rows(task: str, num_rows: int, name: str | int = "rows") -> Batch:
    """Random rows of a task; a class shows in the pixels, and sentences are of unlike lengths."""
    generator = DATA.child(task, name).torch()
    labels = torch.randint(0, CLASSES, (num_rows,), generator=generator)
    if task == "image-classification":
        pixels = torch.randint(0, 128, (num_rows, 4, 4, 1), generator=generator)
        return {"pixel_values": (pixels + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8), "labels": labels}
    ids = torch.randint(4, TOKENS, (num_rows, LONGEST), generator=generator)
    lengths = torch.randint(4, LONGEST + 1, (num_rows,), generator=generator)
    mask = (torch.arange(LONGEST) < lengths.unsqueeze(1)).int()
    ids = torch.where(mask.bool(), ids, torch.zeros_like(ids)).int()
    if task == "causal-lm":  # the first two tokens are the prompt
        learned = mask.bool() & (torch.arange(LONGEST) >= 2)
        labels = torch.where(learned, ids, torch.full_like(ids, -100)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Several(NamedTuple):
    """A federation of unlike architectures, and its clients by id."""

    federation: Federation
    clients: Mapping[ClientId, Client]


def several(models: Sequence[str] = (VIT, WIDE), *, mixed: bool = False, proxy: int = 0, **more: Any) -> Several:
    """A federation of two clients for each model; ``mixed`` gives each model every other number, not neighbours."""
    scenes = [small(model, budgets=(1, 2), sizes=(5, 8), proxy=proxy, **more) for model in models]
    clients: dict[ClientId, Client] = {}
    for place, scene in enumerate(scenes):
        for old, client in scene.clients.items():
            id = old * len(scenes) + place if mixed else old + 2 * place
            clients[id] = replace(client, profile=replace(client.profile, id=id, group=f"group {place}"))
    clients = dict(sorted(clients.items()))
    whole = [scene.federation for scene in scenes]
    names = [scene.layout.architecture for scene in scenes]
    federation = Federation(
        tuple(client.profile for client in clients.values()),
        {name: scene.layout for name, scene in zip(names, scenes, strict=True)},
        {name: one.initial[name] for name, one in zip(names, whole, strict=True)},
        whole[0].rounds,
        rule=whole[0].rule,
        proxies={name: one.proxy for name, one in zip(names, whole, strict=True) if one.proxy is not None},
        scalings={name: one.scaling for name, one in zip(names, whole, strict=True)},
    )
    return Several(federation, clients)


def small(
    model: str = VIT,
    *,
    budgets: Sequence[int] = (1, 2, 4),
    sizes: Sequence[int] = (5, 8, 6),
    training: Training | None = None,
    rounds: int = 4,
    proxy: int = 0,
    dropout: float = 0.1,
    rank: int = 2,
    ranks: Sequence[int] | None = None,
    rule: Rule | None = None,
    every: bool = False,
    dora: bool = False,
) -> Small:
    """One client for each budget, with as many rows as ``sizes`` says; ``proxy`` rows for the server.

    The server's adapters have this ``rank`` and scale 2, the clients' ``ranks``. ``every`` and ``dora`` are those of
    ``workbench``.
    """
    training = training or Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
    bench = workbench(model, rank=rank, dropout=dropout, every=every, dora=dora)
    task, make = task_of(model), initial(bench.layout, bench.model)
    first = make(Rng(5).child("init"))  # as the rounds of seed 5 begin

    def client(id: ClientId, budget: int, num_rows: int) -> Client:
        own = None if ranks is None or id == SERVER else ranks[id]
        profile = Profile(id, num_rows, bench.layout.architecture, Budget(budget, own), task)
        train, test = rows(task, num_rows, id), rows(task, 6, f"test {id}")
        return Client(profile, bench, cut(first, own), training, rounds, train, {"test": test})

    clients = {id: client(id, budget, size) for id, (budget, size) in enumerate(zip(budgets, sizes, strict=True))}
    architecture = bench.layout.architecture
    federation = Federation(
        tuple(held.profile for held in clients.values()),
        {architecture: bench.layout},
        {architecture: make},
        rounds,
        {architecture: LoraSettings(rank, 2.0 * rank).scaling},
        {architecture: client(SERVER, bench.layout.num_layers, proxy)} if proxy else {},
        rule=rule,
    )
    return Small(federation, clients, bench)


def mixtures(models: Sequence[str] = (VIT, WIDE), *, rank: int = 3, **more: Any) -> Several:
    """A federation with mixtures of adapters, see ``_sharing``; ``more`` may hold settings of the mixture, too."""
    kept, settings = _split(more)
    slots = min(_loaded(model, task_of(model)).blocks.num_layers for model in models)
    made = MixtureSettings(rank, float(rank), **{"branches": len(models), "num_slots": slots, **settings})
    return _sharing(models, MIXTURE, made, **kept)


def common(models: Sequence[str] = (VIT, WIDE), *, rank: int = 3, **more: Any) -> Several:
    """A federation with adapters in common coordinates of public inputs; ``more`` as for ``mixtures``."""
    kept, settings = _split(more)
    return _sharing(models, COMMON, Adapter(kind="common", rank=rank, alpha=float(rank), **settings), **kept)


def anchored(models: Sequence[str] = (VIT, WIDE), *, rank: int = 3, **more: Any) -> Several:
    """A federation with adapters that are aligned to the smallest model; ``more`` as for ``mixtures``."""
    kept, settings = _split(more)
    settings = {"num_blocks": 2, **settings}
    return _sharing(models, ANCHORED, Adapter(kind="anchored", rank=rank, alpha=float(rank), **settings), **kept)


def beside(name: str, federation: Federation, *, turned: Any = None, **settings: Any) -> Method:
    """A method in each architecture apart, beside cores and a head in common coordinates that all share.

    ``turned`` is as for ``with_axes``, for 3 coordinates.
    """
    named = {own for layout in federation.layouts.values() for own in layout.depth if is_shared(own)}
    rest, both = split(federation, named)
    apart = by_architecture(lambda own: METHODS[name](own, **settings), rest)
    return with_axes(with_shared(apart, mean_of(both, "examples"), both), federation, 3, turned=turned)


SERVED = {
    "rounds": 4,
    "threads": 1,
    "device": "cpu",
    "model": {"name": "tiny:llama?layers=1&width=16", "task": "causal-lm", "max_length": 32},
    "data": {"source": "arithmetic:blank?train=20&test=2"},
    "partition": {"scheme": "iid", "num_clients": 3, "test_fraction": 0.0},
    "clients": {"budgets": [1, 1, 1]},
    "adapter": {"rank": 2},
    "training": {"steps": 2, "batch_size": 4, "learning_rate": 0.05},
    "server": {
        "model": {"name": "tiny:llama?layers=1&width=24", "task": "causal-lm", "max_length": 32},
        "data": {"source": "arithmetic:blank?train=8&test=2"},
    },
}
"""A run file with a server that owns a model and data, but for the method."""


@lru_cache(maxsize=4)  # a method has no state of its own, and clients load their tensors whenever they work
def _served(name: str, settings: tuple[tuple[str, Any], ...]) -> Experiment:
    return build(parse({**SERVED, "method": {"name": name, **dict(settings)}}))


def served(name: str, **settings: Any) -> Experiment:
    """The experiment of a method that needs a server which owns a model and data."""
    return _served(name, tuple(sorted(settings.items())))


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the federation, and those of its adapters."""
    kept = {name: value for name, value in options.items() if name in ("budgets", "training", "mixed")}
    return kept, {name: value for name, value in options.items() if name not in kept}


def _sharing(
    models: Sequence[str],
    kind: Kind,
    section: Any,
    *,
    budgets: Sequence[int] = (1, 3),
    training: Training | None = None,
    mixed: bool = False,
) -> Several:
    """A federation of clients of unlike architectures with adapters of this kind: for each model, one client for each
    budget."""
    training = training or Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
    loaded = [_loaded(model, task_of(model)) for model in models]
    slots = min(one.blocks.num_layers for one in loaded)
    clients: dict[ClientId, Client] = {}
    layouts, makers, frozen, public, scalings = {}, {}, {}, {}, {}
    for place, (model, one) in enumerate(zip(models, loaded, strict=True)):
        task, own = task_of(model), deepcopy(one.model)
        host = Host(
            own,
            one.blocks,
            one.architecture,
            number=place,
            num_architectures=len(models),
            fewest_layers=slots,
            head=one.head,
            trained_head=one.head,
            fresh_head=one.fresh_head,
            targets=one.targets,
            task=task,
            classes=(),
            state={},
        )
        added = kind.put(section, host)
        where, start, cpu = added.layout, added.start, torch.device("cpu")
        bench = Workbench(
            own, one.blocks, where, trainable(own, where), one.prepare, scoring=scoring_of(task), device=cpu
        )
        if added.common is not None:
            axes, inputs = Axes(inputs=40, held_out=12, basis=16), rows(task, 52, "public")
            bench.public = PublicInputs(own, added.common, axes, cpu, one.prepare, inputs, Rng(5).child("public"))
            public[one.architecture] = bench.public.shapes(section.rank, one.prepare(inputs))
        first = start(Rng(5).child("init"))  # as the rounds of seed 5 begin
        layouts[one.architecture], makers[one.architecture] = where, start
        scalings[one.architecture] = added.scaling
        frozen |= {one.architecture: added.frozen} if added.frozen else {}
        for number, budget in enumerate(budgets):
            id = number * len(models) + place if mixed else place * len(budgets) + number
            size = 5 + 3 * number + place
            profile = Profile(id, size, one.architecture, Budget(budget), task, f"group {place}")
            held_out = {"test": rows(task, 6, f"test {id}")}
            clients[id] = Client(profile, bench, first, training, 4, rows(task, size, id), held_out)
    clients = dict(sorted(clients.items()))
    profiles = tuple(client.profile for client in clients.values())
    return Several(Federation(profiles, layouts, makers, 4, scalings, frozen=frozen, public=public), clients)
