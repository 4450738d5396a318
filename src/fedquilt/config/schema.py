"""Every key of a run file, with its type, its default and its meaning.

``[partition]`` and ``[method]`` also hold free keys: the settings of the chosen scheme and the arguments of the chosen
method. They are checked later against the signature of the scheme or method (``fedquilt.config.arguments``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PrivateAttr, field_validator

from fedquilt.adapters.common.settings import Axes
from fedquilt.adapters.settings import Adapter
from fedquilt.aggregate.settings import Aggregation
from fedquilt.config.checkpoints import Checkpoints
from fedquilt.config.clients import FREE, Clients, Partition
from fedquilt.config.data import Data
from fedquilt.config.evaluation import Evaluation
from fedquilt.config.labels import Label
from fedquilt.config.network import Network
from fedquilt.config.own_keys import OwnAdapter, OwnTraining
from fedquilt.config.parties import Party
from fedquilt.config.privacy import Privacy
from fedquilt.config.rejected_values import Spoilt
from fedquilt.config.sections import Section, is_section
from fedquilt.config.server import Server
from fedquilt.config.strict import STRICT
from fedquilt.core.defence import Defence
from fedquilt.core.disclosure import Disclosure
from fedquilt.core.engine import Engine
from fedquilt.core.model import Model
from fedquilt.core.settings import Count, Layers, Part, Percent, Rank, Rounds, Seed, Text, Written
from fedquilt.core.track import Track
from fedquilt.core.training import Training


class Head(BaseModel):
    """Treatment of the classification head."""

    model_config = STRICT

    policy: Literal["aggregate", "local", "frozen"] = "aggregate"
    """Trained and aggregated, trained and kept local, or not trained."""


class Method(BaseModel):
    """The federated method; further keys are the arguments of its factory, which ``fedquilt methods NAME`` lists."""

    model_config = FREE

    name: Text = "fed-hello"
    """One of ``fedquilt methods``."""

    @property
    def settings(self) -> dict[str, Any]:
        """The free keys: arguments of the method's factory."""
        return dict(self.model_extra or {})


class Group(BaseModel):
    """Clients with the same model, data and budget.

    The tables ``model`` and ``data`` of an entry replace those of the file; of ``adapter``, ``head`` and ``training``
    (and of ``partition``, with data of its own) an entry replaces single keys: ``model = {name = "bert-base-uncased",
    task = "sequence-classification"}``, or ``[groups.model]`` below the entry.

    Clients are numbered group by group. Groups without their own data share the file's, which is partitioned over all
    of their clients. Groups with the same model, head, classes and adapter train one adapter together. Groups of
    different architectures do not share tensors: a method that does not work across architectures runs separately in
    each. With groups, leave ``clients.shares``, ``clients.budgets`` and ``clients.ranks`` out.
    """

    model_config = STRICT

    label: Label
    """Name of the group in the record and in tables, and in the folder ``adapters/global-LABEL``."""
    share: Count = 1
    """Relative number of clients, of ``partition.num_clients``."""
    budget: Layers | Percent
    """Number of blocks that each of its clients can train, or its share of the model's blocks, as ``"50%"``."""
    rank: Rank | None = None
    """LoRA rank of its clients, at most ``adapter.rank``, which is the default."""
    model: Model | None = None
    """The group's model, in place of [model]."""
    data: Data | None = None
    """The group's own data, in place of [data], partitioned over its clients."""
    partition: Partition | None = None
    """Keys of [partition] for the group's own data, except ``num_clients``, which follows from ``share``."""
    adapter: OwnAdapter | None = None
    """Keys of [adapter]."""
    head: Head | None = None
    """Keys of [head]."""
    training: OwnTraining | None = None
    """Keys of [training], except ``proximal`` and ``precision``, which apply to all groups."""


class Config(BaseModel):
    """One run file, checked."""

    model_config = STRICT

    name: Annotated[Text, Field(max_length=200)] = "run"
    """Name of the run and of its folder; the file's name if left out."""
    seed: Seed = 1
    """Seed of all randomness of the run."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()
    """Seeds that ``fedquilt compare`` runs; only ``seed`` if left out."""
    rounds: Rounds = 30
    """Federated rounds."""
    device: Written = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:0`` or ``mps``."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of CPU threads that torch uses. If left out, it is 1 for models of fewer than a million weights, otherwise
    torch's own choice; the environment variable ``OMP_NUM_THREADS`` overrides both. Results are bit-identical only for
    the same number; a resumed run keeps its own."""
    quorum: Part = 0.0
    """Smallest fraction of the cohort that must send a usable reply; one reply is always needed."""
    output: Text = "runs"
    """Folder for run folders."""
    model: Model
    data: Data
    partition: Partition = Partition()
    clients: Clients = Clients()
    adapter: Adapter = Adapter()
    axes: Axes = Axes()
    head: Head = Head()
    training: Training = Training()
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    aggregation: Aggregation = Aggregation()
    defence: Defence = Defence()
    privacy: Privacy = Privacy()
    disclosure: Disclosure = Disclosure()
    network: Network = Network()
    checkpoints: Checkpoints = Checkpoints()
    track: Track = Track()
    method: Method = Method()
    server: Server | None = None
    groups: Annotated[tuple[Group, ...], Field(max_length=100)] = ()
    """Groups of clients with different models, data, heads or adapters; see [[groups]] below."""
    parties: Annotated[tuple[Party, ...], Field(max_length=100)] = ()
    """Parties of a vertical federation, for ``partition.scheme = "vertical"``; see [[parties]] below."""
    compare: Annotated[tuple[dict[str, Any], ...], Field(max_length=100)] = ()
    """Runs of ``fedquilt compare``: each entry has a ``label`` and the sections in which it differs."""

    _spoilt: Spoilt = PrivateAttr(default=Spoilt())
    _objects: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def spoilt(self) -> Spoilt:
        """The keys that were wrong in the file and have a default or stand-in here; no problem is reported for them."""
        return self._spoilt

    def marked(self, spoilt: Spoilt) -> Config:
        """The same config with these keys marked as spoilt."""
        made = self.model_copy()
        made._spoilt = spoilt
        return made

    @property
    def objects(self) -> Mapping[str, Any]:
        """Objects that the calling program gave in place of a path, by their names in the config; never written."""
        return self._objects

    def with_objects(self, objects: Mapping[str, Any]) -> Config:
        """The same config with these objects of the calling program, by name."""
        made = self.model_copy()
        made._objects = {**self._objects, **objects}
        return made

    @property
    def cohort(self) -> int:
        """The number of clients that take part in each round."""
        return self.clients.cohort or self.partition.num_clients

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if name.startswith(".") or re.search(r"[/\\\x00-\x1f]", name):
            raise ValueError("names a folder, so it must not start with '.' or hold '/' or '\\'")
        return name

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device):
            raise ValueError("not a device; allowed: 'auto', 'cpu', 'cuda', 'cuda:0' (and so on), 'mps'")
        return device

    @field_validator("seeds")
    @classmethod
    def _are_unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"every seed may stand once; {twice} stand more often")
        return seeds


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The type of a key that may be left out (``Server | None``), or the type itself."""
    return get_args(annotation) if NoneType in get_args(annotation) else (annotation,)


SECTIONS: dict[str, Section] = {
    key: kind for key, field in Config.model_fields.items() for kind in _kinds(field.annotation) if is_section(kind)
}
"""The tables of a run file, by name."""
