"""Export of a run's adapters as folders, at its end or on request.

PEFT loads LoRA adapters, and mixtures that can be converted to LoRA. Other mixtures have their own format, which
``fedquilt.load_adapter`` reads. After full fine-tuning the folder holds the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fedquilt.adapters.common.module import PARTS
from fedquilt.adapters.common.parts import PARTS_FILE
from fedquilt.adapters.folders import replace_folder
from fedquilt.adapters.kind import Export
from fedquilt.adapters.model_card import CARD, is_own
from fedquilt.adapters.registry import KINDS
from fedquilt.config.load import parse
from fedquilt.core.enclosed import BASE, is_enclosed
from fedquilt.core.errors import RunError
from fedquilt.core.params import num_bytes
from fedquilt.core.shell import command
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId, Memory, Order, Tree
from fedquilt.experiment.base_of_run import base_of_run, plain_base
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.models.features import save_features
from fedquilt.models.hf_files import PREPROCESSOR
from fedquilt.models.locate import whole_of
from fedquilt.record import Record, hold, read_config, read_partition, read_result
from fedquilt.record.folder import ADAPTERS

NO_OBJECTS: Mapping[str, Any] = MappingProxyType({})
# of an adapter, in any format
_OURS = {BASE, PREPROCESSOR, PARTS_FILE, *PARTS, *(name for kind in KINDS.values() for name in kind.files)}
_SERVER = "server"
_FIRST = {PARTS_FILE, *(kind.files[0] for kind in KINDS.values() if kind.files)}  # of which each adapter has one


def save_adapters(experiment: Experiment, state: Tree, memories: Mapping[ClientId, Memory], folder: Path) -> None:
    """Save adapters in ``global`` (``global-LABEL`` for each group) and in ``client-007`` and so on.

    A client has a folder if its adapter differs from the global one in local tensors or in rank. The model that the
    server owns has its adapter in ``server``.
    """
    view = experiment.method.view
    if experiment.owner is not None and experiment.method.server is not None:
        owned = experiment.method.server(state)
        params = experiment.owner.server.params(Order(owned["params"]), owned["memory"])
        _save(experiment.owner, folder / _SERVER, params)
    for group in experiment.groups:
        order = view(state, group.server.profile)
        if is_whole(group, order):
            _save(group, folder / _global_folder(group.label), group.server.params(order))
        here = (one for one in experiment.federation.profiles if one.id in group.ids and one.id in experiment.clients)
        for profile in here:
            own, memory = view(state, profile), memories.get(profile.id)
            if (memory or {}).get("params") or num_bytes(own.params) != num_bytes(order.params):
                params = experiment.clients[profile.id].params(own, memory)
                _save(group, folder / _client_folder(profile.id), params)


def is_whole(group: BuiltGroup, order: Order) -> bool:
    """Whether an order holds every tensor of the layout; it may also hold a change of the base or a bank."""
    return group.layout.depth.keys() <= order.params.keys()


def _save(group: BuiltGroup, folder: Path, params: Mapping[str, torch.Tensor]) -> None:
    model, loaded = group.config.model, group.loaded
    base, layers = whole_of(model.name)
    export = Export(
        model.name,
        base_name=base,
        num_layers=layers,
        revision=model.revision,
        classes=loaded.outputs.names,
        load=group.bench.load,
        save_model=loaded.save,
    )
    group.put.save(folder, params, export)
    if loaded.reading.features is not None:
        save_features(folder, loaded.reading.features)


def export(
    run: Path | str,
    out: Path | str,
    client: ClientId | None = None,
    group: str | None = None,
    *,
    server: bool = False,
) -> Path:
    """Write the adapter of a run's last checkpoint as a folder: the global one, a group's, a client's or a server's.

    After full fine-tuning the folder holds the model. The adapters of a finished run are copied, which needs neither
    model nor data; those of an unfinished run are built. A base that
    nobody could load by its name is written into the folder ``base``.

    Parameters
    ----------
    run, out
        The run's folder, and the folder to write.
    client, group
        The client, or the label of the group; None for the global model.
    server
        Whether the model that the server owns is meant.

    Raises
    ------
    RunError
        if the run has no checkpoint, no global model because parts of it stay with the clients, or no such client or
        group, or if ``out`` holds other files than an adapter's, which would be lost.
    """
    run, out = Path(run), Path(out)
    Record.open(run)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: is a file; give a new folder")
    # a whole model may be a base of other runs: it is never overwritten
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    begun = bool(there & _OURS) and there <= _OURS | {"README.md"}  # an interrupted export
    if there and not there & _FIRST and not begun:
        raise RunError(f"--out {out}: this folder is not empty and holds no adapter; give a new folder")
    with _ready(run, client, group, server=server) as made:

        def fill(fresh: Path) -> None:
            if out.is_dir():  # files that users put beside the adapter are kept
                shutil.copytree(out, fresh, ignore=lambda folder, names: _OURS, dirs_exist_ok=True)
            own = {CARD} if is_own(out / CARD) else set[str]()
            shutil.copytree(made, fresh, ignore=lambda folder, names: own, dirs_exist_ok=True)
            _add_base(run, fresh, client, group, server=server)

        replace_folder(out.resolve(), fill)
    return out


def _add_base(run: Path, fresh: Path, client: ClientId | None, group: str | None, *, server: bool) -> None:
    """Write the base into an adapter's folder if nobody could load it by its name."""
    if read_config(run).get("parties"):
        client, group, server = party_of(run, read_partition(run)["clients"], client, group, server=server)
    config, form, rng = base_of_run(run, fresh, client, group, server=server)
    reads_table = TASKS[config.model.task].reads == "table"
    if is_enclosed(config.model.name) and not KINDS[config.adapter.kind].trains_base and not reads_table:
        plain_base(config, form, rng).save(fresh / BASE)


def adapter_folder(
    run: Path,
    client: ClientId | None = None,
    group: str | None = None,
    objects: Mapping[str, Any] = NO_OBJECTS,
    *,
    server: bool = False,
) -> Path:
    """The folder inside a run's folder with the adapter of its last checkpoint; arguments as for ``export``.

    A finished run has its adapters; those of an unfinished run are all built.

    Parameters
    ----------
    run
        The run's folder.
    client, group
        The client, or the label of the group; None for the global model.
    objects
        ``Config.objects``.
    server
        Whether the model that the server owns is meant.

    Raises
    ------
    RunError
        as ``export`` does.
    """
    with _ready(run, client, group, objects, server=server) as made:
        return made


@contextmanager
def _ready(
    run: Path,
    client: ClientId | None,
    group: str | None,
    objects: Mapping[str, Any] = NO_OBJECTS,
    *,
    server: bool = False,
) -> Iterator[Path]:
    """The folder of ``adapter_folder``; no process writes to it while the context is open."""
    record = Record.open(run)
    clients = read_partition(run)["clients"]
    if client is not None and not 0 <= client < len(clients):
        raise RunError(f"--client {client}: {run} has the clients 0 to {len(clients) - 1}")
    if read_config(run).get("parties"):
        client, group, server = party_of(run, clients, client, group, server=server)
    elif server:
        _refuse_server(run, client, group)
    label = "" if server else _label(run, [one.get("group", "") for one in clients], client, group)
    if read_result(run) is not None:
        yield run / ADAPTERS / _SERVER if server else _chosen(record, label, client)
        return
    with hold(run) as held:  # so that no process writes what is read here
        record = Record.open(run, held=held)
        record.check()
        if not record.has_checkpoint:
            raise RunError(
                f"{run} has no finished round to export; let it finish one: {command('run', '--resume', run)}"
            )
        experiment = build(parse(read_config(run)).with_objects(objects))
        _, state, memories = record.load_checkpoint()
        replace_folder(run / ADAPTERS, lambda fresh: save_adapters(experiment, state, memories, fresh))
        yield run / ADAPTERS / _SERVER if server else _chosen(record, label, client)


def party_of(
    run: Path, clients: Sequence[Mapping[str, Any]], client: ClientId | None, label: str | None, *, server: bool
) -> tuple[ClientId | None, None, bool]:
    """The client, or the server, that is the wanted party of a vertical run; every party has an encoder of its own.

    Parameters
    ----------
    run, clients
        The run's folder, and the clients of its partition.
    client, label, server
        What names the party: exactly one of them.

    Raises
    ------
    RunError
        if none or several are given, or there is no such party.
    """
    labels = [*(str(one["group"]) for one in clients), str(read_partition(run)["vertical"]["active"])]
    given = [client is not None, label is not None, server]
    if sum(given) != 1 or (label is not None and label not in labels):
        raise RunError(
            f"{run}: every party has an encoder of its own; give --group with one of {', '.join(labels)}, or --client "
            "NUMBER, or --server for the active party"
        )
    number = client if label is None else labels.index(label)
    return (None, None, True) if number is None or number == len(clients) else (number, None, False)


def _refuse_server(run: Path, client: ClientId | None, group: str | None) -> None:
    """Raise RunError if the server of this run owns no model, or a client or group is named too."""
    if client is not None or group is not None:
        raise RunError("--server: the server is in no group and no client; leave --client and --group out")
    if not (read_config(run).get("server") or {}).get("model"):
        raise RunError(f"--server: {run} has no [server.model], so the server owns no model; leave it out")


def _chosen(record: Record, label: str, client: ClientId | None) -> Path:
    """The folder of the wanted adapter inside the run's folder, after a check that it is complete."""
    run = record.folder
    own = None if client is None else _client_folder(client)
    # a client without local tensors uses the global model
    name = own if own is not None and record.has_adapter(own) else _global_folder(label)
    if not record.has_adapter(name):
        whose = f"{run}: group '{label}'" if label else str(run)
        raise RunError(
            f"{whose} has no global model: tensors of it stay with the clients; export one client's with "
            "--client NUMBER"
            if client is None
            else f"{run}: client {client} has not trained, and there is no global model; choose another --client"
        )
    return run / ADAPTERS / name


def _label(run: Path, groups: list[str], client: ClientId | None, wanted: str | None) -> str:
    """The label of the wanted group; ``groups`` are the labels of the clients' groups in the order of the clients."""
    labels = list(dict.fromkeys(label for label in groups if label))
    if wanted is not None:
        if not labels:
            raise RunError(f"--group {wanted}: {run} has no groups; leave it out")
        if client is not None:
            raise RunError(f"--group {wanted} with --client {client}: a client is in one group; give one of the two")
        if wanted not in labels:
            raise RunError(f"--group {wanted}: {run} has no such group; it has {', '.join(labels)}")
        return wanted
    if client is not None:
        return groups[client]
    if labels:
        raise RunError(f"{run} has a global model for each group; give --group, one of {', '.join(labels)}")
    return ""


def _global_folder(label: str) -> str:
    return f"global-{label}" if label else "global"


def _client_folder(client: ClientId) -> str:
    return f"client-{client:03d}"
