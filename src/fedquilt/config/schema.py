"""Every key of a run file, with its type, its default and its meaning.

``[partition]`` and ``[method]`` also hold free keys: the settings of the chosen scheme and the arguments of the chosen
method. They are checked later against the signature of what they are for (``fedquilt.config.arguments``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, field_validator, model_validator

from fedquilt.config.adapter import Adapter, OwnAdapter
from fedquilt.config.aggregation import Aggregation
from fedquilt.config.checkpoints import Checkpoints
from fedquilt.config.clients import FREE, Clients, Partition
from fedquilt.config.data import Data
from fedquilt.config.defence import Defence
from fedquilt.config.evaluation import Evaluation
from fedquilt.config.network import Network
from fedquilt.config.privacy import Privacy
from fedquilt.config.rejected_values import Spoilt
from fedquilt.config.sections import Section, is_section, keys_apart
from fedquilt.config.value_types import STRICT, Count, Layers, Part, Rank, Rounds, Seed, Text, Tokens, Written
from fedquilt.core.tasks import TASKS, TaskName
from fedquilt.core.training import Training

if TYPE_CHECKING:
    OwnTraining = BaseModel
else:
    OwnTraining = keys_apart(Training)
    """Keys of [training] that a group has of its own; which of steps and epochs holds is seen when both are known."""


class Model(BaseModel):
    """Which foundation model is fine-tuned, and for what."""

    model_config = STRICT

    name: Text
    """A shipped model (``glyph-vit``, ``glyph-vit-4x32``, ``glyph-vit-8x48``, ``arith-llama``, ``arith-gemma``,
    ``arith-qwen``), ``tiny:<architecture>`` (random), a local folder, or a name on the Hugging Face hub.
    ``?layers=3`` behind it takes the first three blocks only."""
    task: TaskName
    """What the model is trained to do."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    max_length: Tokens = 128
    """Tokens kept of one text."""
    labels: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    """Of a classifier: the data's names for what the base's outputs stand for, in their order, where the base's own
    names (``id2label``) are other words or only numbers. If left out, the names themselves are joined."""

    @model_validator(mode="after")
    def _labels_are_a_classifiers(self) -> Model:
        if self.labels is not None and not TASKS[self.task].has_classes:
            raise ValueError(f"labels are of a classifier, and task is '{self.task}'; leave labels out")
        return self


class Head(BaseModel):
    """What happens to the classification head."""

    model_config = STRICT

    policy: Literal["aggregate", "local", "frozen"] = "aggregate"
    """Trained and aggregated, trained and kept by each client, or not trained."""


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
    """Clients of one kind. Each entry may also have the tables ``model`` and ``data``, which stand in place of the
    file's, and ``adapter``, ``head`` and ``training`` (and ``partition``, with data of its own), of which the keys that
    it names do: ``model = {name = "bert-base-uncased", task = "sequence-classification"}``, or ``[groups.model]`` below
    the entry.

    Client numbers run through the groups in their order. Groups without data of their own share the file's, which is
    dealt to all of their clients. Groups of the same model, head, classes and adapter train one adapter together.
    Others have nothing that a mean could be taken of: a method that knows one architecture runs in each of them apart.
    With groups, leave ``clients.shares``, ``clients.budgets`` and ``clients.ranks`` out.
    """

    model_config = STRICT

    label: Annotated[Text, Field(max_length=100)]
    """The group's name in the record and in tables; also of the folder ``adapters/global-LABEL``."""
    share: Count = 1
    """Relative number of clients, of ``partition.num_clients``."""
    budget: Layers
    """Blocks that each of its clients can train."""
    rank: Rank | None = None
    """Rank of its clients' adapters; ``adapter.rank``, which it may not be above, if left out."""
    model: Model | None = None
    """The group's model, in place of [model]."""
    data: Data | None = None
    """The group's own data, in place of [data], dealt among its own clients."""
    partition: Partition | None = None
    """Keys of [partition] for the group's own data; not ``num_clients``, which comes of ``share``."""
    adapter: OwnAdapter | None = None
    """Keys of [adapter]."""
    head: Head | None = None
    """Keys of [head]."""
    training: OwnTraining | None = None
    """Keys of [training]; not ``proximal`` and ``precision``, which hold for all groups."""

    @field_validator("label")
    @classmethod
    def _is_a_folder_name(cls, label: str) -> str:
        if label.startswith(".") or not all(sign.isalnum() or sign in "-_. " for sign in label):
            raise ValueError("names a folder, so it holds letters, digits, '-', '_', '.' and spaces only")
        return label


class Config(BaseModel):
    """One run file, checked."""

    model_config = STRICT

    name: Annotated[Text, Field(max_length=200)] = "run"
    """Of the run and of its folder; the file's name if left out."""
    seed: Seed = 1
    """Where all randomness of one run starts."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()
    """Seeds that ``fedquilt compare`` runs; only ``seed`` if left out."""
    rounds: Rounds = 30
    """Federated rounds."""
    device: Written = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:0`` or ``mps``."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads that torch uses; torch's own choice if left out. Another number may give other last bits."""
    quorum: Part = 0.0
    """Share of the asked clients that must send a usable reply; one is always needed."""
    output: Text = "runs"
    """Folder in which run folders are made."""
    model: Model
    data: Data
    partition: Partition = Partition()
    clients: Clients = Clients()
    adapter: Adapter = Adapter()
    head: Head = Head()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    aggregation: Aggregation = Aggregation()
    defence: Defence = Defence()
    privacy: Privacy = Privacy()
    network: Network = Network()
    checkpoints: Checkpoints = Checkpoints()
    method: Method = Method()
    groups: Annotated[tuple[Group, ...], Field(max_length=100)] = ()
    """Groups of clients that do not match in model, data, head or adapter; see [[groups]] below."""
    compare: Annotated[tuple[dict[str, Any], ...], Field(max_length=100)] = ()
    """What ``fedquilt compare`` runs: each entry has a ``label`` and the sections in which it differs."""

    _spoilt: Spoilt = PrivateAttr(default=Spoilt())
    _objects: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def spoilt(self) -> Spoilt:
        """Keys that were wrong in the file, and have a default or a stand-in here: nothing may be blamed on these."""
        return self._spoilt

    def marked(self, spoilt: Spoilt) -> Config:
        """The same config, of which these keys are spoilt."""
        made = self.model_copy()
        made._spoilt = spoilt
        return made

    @property
    def objects(self) -> Mapping[str, Any]:
        """What the calling program gave in place of a path, by the name that stands here for it; never written."""
        return self._objects

    def with_objects(self, objects: Mapping[str, Any]) -> Config:
        """The same config, in which these names stand for objects of the calling program."""
        made = self.model_copy()
        made._objects = {**self._objects, **objects}
        return made

    @property
    def cohort(self) -> int:
        """Clients that take part in each round."""
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


SECTIONS: dict[str, Section] = {
    key: kind for key, field in Config.model_fields.items() if is_section(kind := field.annotation)
}
"""The tables of a run file, by name."""
