"""Records of a run's inputs: the assignment of rows to clients, and digests of rows and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from operator import itemgetter
from typing import Any

from fedquilt.client.client import Client
from fedquilt.core.types import Profile
from fedquilt.data.bad_rows import listed
from fedquilt.data.holdout import label_counts, split_digest
from fedquilt.data.table import Columns, Table
from fedquilt.experiment.data import AssignedRows
from fedquilt.experiment.data_of_groups import DataSource
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.record import clients_of


def partition_record(assigned: AssignedRows, profiles: Sequence[Profile]) -> dict[str, Any]:
    """The assignment of rows to clients with class counts, for ``partition.json``."""
    labels = None if assigned.table is None or assigned.table.labels is None else assigned.table.labels.numpy()
    classes = () if assigned.table is None else assigned.table.classes

    def described(profile: Profile) -> dict[str, Any]:
        split = assigned.splits[profile.id]
        return {
            **about(profile),
            **({"name": assigned.names[profile.id]} if profile.id in assigned.names else {}),
            "train": split.train.tolist(),
            "validation": split.validation.tolist(),
            "test": split.test.tolist(),
            "labels": label_counts([split.train], labels, classes)[0],
        }

    return {
        "digest": split_digest((assigned.splits[profile.id] for profile in profiles), assigned.proxy),
        "classes": list(classes),
        "proxy": assigned.proxy.tolist(),
        **missing_record(assigned.table),
        "clients": clients_of(map(described, profiles), len(profiles)),
    }


def missing_record(table: Table | None) -> dict[str, Any]:
    """How many rows ``data.on_missing = "drop"`` left out, and where the first of them stand; empty for none."""
    if table is None or not table.dropped:
        return {}
    return {"missing": [{"what": what, "rows": len(where), "where": listed(where)} for what, where in table.dropped]}


def announced_record(profiles: Sequence[Profile]) -> dict[str, Any]:
    """The announcements of the clients, for ``partition.json``, if only the clients see their rows."""
    clients = [about(profile) for profile in profiles]
    digest = hashlib.sha256(json.dumps(clients, sort_keys=True).encode()).hexdigest()
    return {"digest": digest, "classes": [], "proxy": [], "clients": clients}


def about(profile: Profile) -> dict[str, Any]:
    """What the record of a partition says of a client besides its rows."""
    return {
        "id": profile.id,
        "architecture": profile.architecture,
        "budget": profile.budget.layers,
        "rank": profile.budget.rank,
        "task": profile.task,
        "examples": profile.num_examples,
        **({"group": profile.group} if profile.group else {}),
    }


def names_of(record: Mapping[str, Any], groups: Sequence[BuiltGroup]) -> dict[str, str]:
    """The natural ids of clients in the data, by client, from the record; only a natural partition has some."""
    if all(group.config.partition.scheme != "natural" for group in groups):
        return {}
    return {str(one["id"]): one["name"] for one in record["clients"] if "name" in one}


def record_of(
    assigned: Sequence[tuple[DataSource, AssignedRows]], groups: Sequence[BuiltGroup], profiles: Sequence[Profile]
) -> dict[str, Any]:
    """The assignment of rows to clients with class counts and counts of truncated rows, for ``partition.json``."""
    lost = [{"group": group.label, **group.lost} for group in groups if group.lost]
    return _assigned_record(assigned, groups, profiles) | ({"lost": lost} if lost else {})


def _assigned_record(
    assigned: Sequence[tuple[DataSource, AssignedRows]], groups: Sequence[BuiltGroup], profiles: Sequence[Profile]
) -> dict[str, Any]:
    records = []
    for source, rows in assigned:
        own = set(source.ids)
        records.append(partition_record(rows, [profile for profile in profiles if profile.id in own]))
    if not groups[0].label:
        return records[0]
    digests = [record["digest"] for record in records]
    return {
        "digest": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        "classes": list(dict.fromkeys(name for record in records for name in record["classes"])),
        "proxy": [],
        "clients": clients_of(merge(*(one["clients"] for one in records), key=itemgetter("id")), len(profiles)),
        "groups": [
            {"label": group.label, "architecture": group.architecture, "task": group.config.model.task}
            for group in groups
        ],
        "sources": [
            {
                "groups": [part.label for part in source.parts],
                **{key: record[key] for key in ("classes", "proxy", "missing") if key in record},
            }
            for (source, _), record in zip(assigned, records, strict=True)
        ],
    }


def outputs_record(groups: Sequence[BuiltGroup]) -> dict[str, dict[str, list[str]]]:
    """The classes of each group's model in the order of its outputs, by the group's label.

    ``classes`` are the data's names, ``names`` those in an exported model.
    """
    named = {group.label: group.loaded.outputs for group in groups}
    return {
        label: {"classes": list(outputs.classes), "names": list(outputs.names)}
        for label, outputs in named.items()
        if outputs.classes
    }


def rows_of(clients: Iterable[Client]) -> Iterator[Columns]:
    """All encoded rows that these clients train and are evaluated on."""
    for client in clients:
        yield client.train
        yield from (own for _, own in sorted(client.splits.items()))


def weights_digest(groups: Sequence[BuiltGroup]) -> str:
    """The digest of the frozen weights of all groups."""
    if len(groups) == 1:
        return groups[0].loaded.digest
    named = {group.label: group.loaded.digest for group in groups}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
