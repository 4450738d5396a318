"""What a user should know of who holds what in a vertical federation, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fedquilt.core.errors import DataError
from fedquilt.core.vertical import Vertical
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.vertical import dealing_of
from fedquilt.vertical.party import party_of

FEW = 5
"""Fewer aligned rows of a class than this are remarked upon."""

_NAMED = 8  # classes that a remark names


def notes_on_parties(experiment: Experiment) -> list[str]:
    """Remarks on the rows of the parties: aligned ones by class, their own, and how they are aligned.

    Raises
    ------
    DataError
        if all files are here and have no id in common.
    """
    vertical = experiment.federation.vertical
    assert vertical is not None, "the run is a vertical one"
    dealing = dealing_of(experiment.config)
    if dealing.id is None:
        return _of_dealt(experiment, vertical.classes)
    notes = []
    if dealing.alignment == "keyed-hash":
        notes.append(
            "partition.alignment = 'keyed-hash': whoever has the key can test guessed ids, and the active party, which "
            "receives the hashes of all rows, has it; 'psi' shows it nothing of ids that it does not hold"
        )
    return [*notes, *_of_files(experiment, vertical)]


def _of_dealt(experiment: Experiment, classes: Sequence[str]) -> list[str]:
    record = experiment.partition
    aligned: Mapping[str, int] = record["vertical"]["aligned"]
    passive = {one["group"]: one for one in record["clients"]}
    sizes = {label: len(one["train"]) for label, one in passive.items()}
    own = {label: one["labels"] for label, one in passive.items()} | {
        record["vertical"]["active"]: record["vertical"]["own"]
    }
    sizes[record["vertical"]["active"]] = sum(record["vertical"]["own"].values())
    labelled = {part.label: part.labelled for part in experiment.config.parties}
    known = {name for label, counts in own.items() if labelled[label] for name, count in counts.items() if count}
    notes = [
        f"data.on_missing = 'drop': left out: {one['what']}: {one['rows']} rows ({one['where']})"
        for one in record.get("missing", ())
    ]
    notes += _of_classes(aligned, classes, known)
    notes += [
        f"party '{label}' knows no labels of its {sizes[label]} unaligned rows"
        for label in sizes
        if sizes[label] and not labelled[label]
    ]
    if any(sizes.values()):
        notes += [
            f"party '{label}' has no unaligned rows, so it learns from the {sum(aligned.values())} aligned ones alone"
            for label, size in sizes.items()
            if not size
        ]
    return notes


def _of_files(experiment: Experiment, vertical: Vertical) -> list[str]:
    """Remarks on parties whose files are here; which rows are common is known where all of them are."""
    active = party_of(vertical.active)
    if not active.ids or len(experiment.clients) < len(vertical.parties) - 1:
        return []
    common = set(active.ids).intersection(*(client.ids for client in experiment.clients.values()))
    if not common:
        counts = ", ".join(
            f"'{vertical.parties[id]}' shares {len(set(active.ids) & set(client.ids))}"
            for id, client in sorted(experiment.clients.items())
        )
        raise DataError(
            f"partition.id: no id is in all files (of the {len(active.ids)} of '{vertical.parties[-1]}', {counts}); "
            "check that the column names the same thing in every file, written in the same way"
        )
    labels = [vertical.classes[label] for label in vertical.labels.tolist()]
    held = Counter(label for one, label in zip(active.ids, labels, strict=True) if one in common)
    notes = [f"{len(common)} rows are in all files, of which {_share(experiment)} are predicted and not learned from"]
    # rows that are not common are the parties' own, and at least the active party knows their labels
    return notes + _of_classes(held, vertical.classes, set(labels))


def _share(experiment: Experiment) -> str:
    return f"{100 * experiment.config.partition.test_fraction:g} %"


def _of_classes(aligned: Mapping[str, int], classes: Sequence[str], known: Collection[str]) -> list[str]:
    """Remarks on classes of which few or no aligned rows are held.

    Parameters
    ----------
    aligned
        The number of aligned rows by class.
    classes
        The names of all classes.
    known
        The classes of which some party has labelled rows of its own.
    """
    few = [name for name in classes if 0 < aligned.get(name, 0) < FEW]
    absent = [name for name in classes if not aligned.get(name, 0) and name in known]
    nowhere = [name for name in classes if not aligned.get(name, 0) and name not in known]
    notes = []
    if few:
        notes.append(f"fewer than {FEW} aligned rows of {_listed(few)}")
    if absent:
        notes.append(f"no aligned row of {_listed(absent)}: only methods that learn from unaligned rows predict it")
    if nowhere:
        notes.append(
            f"no labelled row of {_listed(nowhere)} at any party: only methods with an offset for classes that nobody "
            "has learned predict it"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"class{'es' * (len(names) > 1)} {shown}{more}"
