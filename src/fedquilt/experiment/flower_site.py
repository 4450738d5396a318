"""A site on Flower: the part of the experiment that one client builds, and its announcement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from fedquilt.config.groups import parts
from fedquilt.config.load import parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import at_rank
from fedquilt.core.types import ClientId, Layout
from fedquilt.data.table import digest
from fedquilt.engine.flower.handshake import card
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.features import SITES
from fedquilt.experiment.inputs_record import rows_of
from fedquilt.experiment.threads import spare_threads
from fedquilt.experiment.vertical_query import site_query

_FOLLOWED = ("seed", "rounds", "adapter", "head", "training", "privacy", "disclosure", "method")
"""Parts of a run file that determine a client's work; they must be equal on server and client."""


_OF_A_NODE = {
    "data": ("data", "source"),
    "model": ("model", "name"),
    "device": ("", "device"),
    "threads": ("", "threads"),
}
"""The keys of a node's own config that replace keys of the run file, with section and key of those."""


def joined(config: Config) -> Any:
    """``join(partition, node_config)`` for ``client_app``, which returns the site of a partition.

    The node's config may set ``data`` (the site's source), ``model`` (a folder with the same weights), ``device`` and
    ``threads``, and in a vertical run ``query``, the file of new rows that it answers about; with ``trainer``, a script
    with a patched Trainer, the site is that of ``trainer_site``. The experiment is built at the first call and kept for
    the lifetime of the process.
    """
    keys = resolved(scored_on_site(config))

    def join(partition: ClientId, node: Mapping[str, Any]) -> Any:
        from fedquilt.engine.flower.client import Site

        if not 0 <= partition < config.partition.num_clients:
            raise ConfigError(
                f"partition-id = {partition}: partition.num_clients = {config.partition.num_clients}, so the "
                f"partitions are 0 to {config.partition.num_clients - 1}"
            )
        own = deepcopy(keys)
        part = next(part for part in parts(config) if partition in part.ids)
        for key, (section, name) in _OF_A_NODE.items():
            if key in node:
                entries = own.get("parties" if part.party else "groups", ())
                place = part.place if part.party is None else config.parties.index(part.party)
                tables = [own, *entries]
                mine = entries[place] if section in part.own else own
                said = deepcopy(mine[section]) if section else None
                # groups with the same model still share it
                for table in tables if section == "model" else [mine]:
                    if said is None or table.get(section) == said:
                        (table[section] if section else own)[name] = node[key]
        experiment = _built(json.dumps(own, sort_keys=True), partition)
        client = experiment.clients[partition]
        # a common source is also read by the server, which compares it by itself
        rows = digest(rows_of([client])) if has_own_file(part.config) else ""
        # only from the node's own config: the server must not choose what a party tells of
        file = node.get("query")
        query = None if file is None else partial(site_query, experiment, partition, str(file))
        return Site(partition, client, experiment.method, cards(experiment)[partition], rows, query)

    return join


@lru_cache(maxsize=1)
def _shared(key: str) -> Experiment:
    return _prepared(key, None)


@lru_cache(maxsize=8)
def _alone(key: str, partition: ClientId) -> Experiment:
    return _prepared(key, (partition,))


def _built(key: str, partition: ClientId) -> Experiment:
    # one process may work for several partitions of one source, and in a simulation for several sites
    config = parse(json.loads(key))
    part = next(part for part in parts(config) if partition in part.ids)
    return _alone(key, partition) if has_own_file(part.config) else _shared(key)


def _prepared(key: str, here: tuple[ClientId, ...] | None) -> Experiment:
    config = parse(json.loads(key))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    experiment = build(config, here, on_site=True)
    spare_threads(experiment)
    return experiment


def cards(experiment: Experiment) -> dict[ClientId, dict[str, Any]]:
    """The card of each client, which it announces and the server compares."""
    made = {}
    files = bool(experiment.config.parties) and has_own_file(experiment.config)
    for group in experiment.groups:
        keys = resolved(group.config)
        sections = {name: keys[name] for name in _FOLLOWED}
        sections |= {"data.classes": keys["data"]["classes"], "network.dtype": keys["network"]["dtype"]}
        sections["the classes of its model's outputs (id2label of the base)"] = list(group.loaded.outputs.classes)
        for profile in experiment.federation.profiles:
            if profile.id in group.ids:
                if profile.num_examples and keeps_its_count(group.config):
                    profile = replace(profile, num_examples=1)  # the weight of its reply
                made[profile.id] = card(
                    profile,
                    tuple(e.name for e in (*experiment.method.exchanges, *experiment.method.closing)),
                    # between files, only its party knows how wide its encoder is
                    layout=at_rank(Layout("", 0, {}, {}) if files else group.layout, profile.budget.rank),
                    base="" if files else group.loaded.digest,
                    sections=sections,
                )
    return made


def has_own_file(config: Config) -> bool:
    """Whether every client reads rows of its own, and no other party's."""
    return config.partition.scheme == SITES or "id" in config.partition.settings


def keeps_its_count(config: Config) -> bool:
    """Whether a client's number of rows is private: no other party knows it, and it would be sent without noise."""
    return config.privacy.mode == "local" and config.partition.scheme == SITES


def scored_on_site(config: Config) -> Config:
    """The config with evaluation by the clients on their own rows, if they are evaluated: the server cannot see these.

    Under differential privacy it is unchanged, and the clients are not evaluated. In a vertical federation test rows
    are predicted by all parties together.
    """
    if config.parties or config.evaluation.clients is False or config.privacy.mode != "none":
        return config
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"clients": "received"})})
