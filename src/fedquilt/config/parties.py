"""The parties of a vertical federation: the tables [[parties]] of a run file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import MinLen
from pydantic import BaseModel

from fedquilt.config.error_text import shown
from fedquilt.config.labels import Label
from fedquilt.config.own_keys import OwnAdapter, OwnTraining
from fedquilt.config.sections import default_of
from fedquilt.config.strict import STRICT
from fedquilt.core.model import Model
from fedquilt.core.parties import VERTICAL, Corner
from fedquilt.core.settings import Text, Whole

if TYPE_CHECKING:
    from fedquilt.config.schema import Config

Names = Annotated[tuple[Text, ...], MinLen(1)]


class Party(BaseModel):
    """A party of a vertical federation, which holds some columns of the rows.

    One party is active: it knows the labels of the aligned rows and predicts. It is the server's process. The others
    are its clients, numbered in their order here. A party sees a row as some ``columns`` of a table, the named ``text``
    of a text row, or a part of an image (``view``).
    """

    model_config = STRICT

    label: Label
    """Name of the party in the record and in tables."""
    active: bool = False
    """Whether it is the active party; the last one if none says so."""
    columns: Names | None = None
    """Columns of a table that the party holds; ``*`` and ``?`` stand for any characters, as in ``image_?_0``."""
    text: Text | None = None
    """Column of a text that the party holds, in place of ``data.text``."""
    view: Annotated[tuple[Corner, ...], MinLen(1)] | None = None
    """Parts of an image that the party holds, next to each other: ``top-left``, ``top-right``, ``bottom-left``,
    ``bottom-right``, ``left``, ``right``, ``top``, ``bottom``."""
    classes: Names | None = None
    """Classes of the party's unaligned rows; all if left out."""
    labelled: bool = True
    """Whether the party knows the labels of its unaligned rows."""
    unaligned: Whole | None = None
    """Number of its unaligned rows, in place of ``partition.unaligned``."""
    model: Model | None = None
    """The party's encoder, in place of [model]."""
    adapter: OwnAdapter | None = None
    """Keys of [adapter]."""
    training: OwnTraining | None = None
    """Keys of [training], except ``proximal`` and ``precision``, which apply to all parties."""


def active_place(parties: tuple[Party, ...]) -> int:
    """The position of the active party among all: the one that says so, or else the last."""
    return next((place for place, party in enumerate(parties) if party.active), len(parties) - 1)


_IDLE = {
    ("partition", "validation_fraction"): "parties hold out test rows alone",
    ("clients", "cohort"): "all parties take part in every round",
    ("training", "accumulation"): "a minibatch of aligned rows is one message; raise training.batch_size",
    ("training", "packing"): "rows keep their place, so that those of all parties match",
    ("training", "proximal"): "parties share no tensors to stay near to",
    ("head", "policy"): "an encoder's head gives the embedding, and stays with its party",
    ("data", "proxy"): "the active party is the server, and its rows are those of a party",
    ("privacy", "mode"): "its guarantees are for updates of a shared model, and embeddings are none; see [disclosure]",
}
"""Keys without effect in a vertical federation, and the reason."""


def party_problems(config: Config) -> list[str]:
    """Every contradiction among the parties, and between them and other keys of the run file."""
    parties, scheme = config.parties, config.partition.scheme
    if not parties:
        needed = f"partition.scheme = '{VERTICAL}': needs at least two [[parties]]; add them, or take another scheme"
        return [needed] if scheme == VERTICAL else []
    if scheme != VERTICAL:
        return [f"parties: are of partition.scheme = '{VERTICAL}', and it is '{scheme}'; set it, or leave them out"]
    problems = []
    if len(parties) < 2:
        problems.append("parties: there is one, and a vertical federation has at least two; add another")
    active = [f"'{party.label}'" for party in parties if party.active]
    if len(active) > 1:
        problems.append(f"parties: {', '.join(active)} are active, and one party is; leave active out of the others")
    seen = set()
    for place, party in enumerate(parties):
        if party.label in seen:
            problems.append(f"parties[{place}].label = '{party.label}': stands twice; give every party its own")
        seen.add(party.label)
    problems += [
        f"{key}: has no place beside [[parties]], which are all clients and the server; leave it out"
        for key in ("groups", "server")
        if getattr(config, key)
    ]
    for (section, key), reason in _IDLE.items():
        table = getattr(config, section)
        value = getattr(table, key)
        if value != default_of(type(table), key):
            problems.append(f"{section}.{key} = {shown(value)}: {reason}; leave it out with [[parties]]")
    return problems
