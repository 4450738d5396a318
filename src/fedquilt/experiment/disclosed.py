"""What the parties of a vertical run have disclosed so far, as epsilons, from the lines of its record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, GRADIENTS, PROTOTYPES, Disclosure
from fedquilt.core.vertical import Vertical
from fedquilt.privacy.account import composed_epsilon
from fedquilt.vertical.disclosure import VECTORS


class PartyAccount:
    """How many noisy vectors have left a party: of each kind in all, and of single rows."""

    def __init__(self) -> None:
        self.vectors: Counter[str] = Counter()
        self.rows: Counter[int] = Counter()
        self.shown = 0

    def told(self, wanted: Disclosure, own: str) -> dict[str, Any]:
        """The party's entry of the record; ``own`` is the kind of vectors that are of single rows."""
        exact = [kind for kind in self.vectors if not wanted.noises[kind]]
        ratios = [] if exact else [wanted.noises[kind] / math.sqrt(count) for kind, count in self.vectors.items()]
        most = max([self.shown, *self.rows.values()])
        row = wanted.noises[own] / math.sqrt(most) if most else math.inf
        return {
            "vectors": dict(self.vectors),
            "exact": exact,
            "epsilon": None if exact else _finite(composed_epsilon(ratios, wanted.delta)),
            "vectors_of_a_row": most,
            "epsilon_of_a_row": _finite(composed_epsilon([row], wanted.delta)),
        }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


class Account:
    """The accounts of all parties of a run, the active one last."""

    def __init__(self, wanted: Disclosure, names: Sequence[str]) -> None:
        self.wanted, self.names = wanted, names
        self.parties = [PartyAccount() for _ in names]

    def add(self, line: Mapping[str, Any]) -> None:
        """Count what was sent in a round; a party whose reply was dropped was asked, and may have sent it."""
        for exchange in line["exchanges"]:
            settings = {int(id): sent["settings"] for id, sent in exchange["clients"].items()}
            # all parties are asked for the same rows
            settings |= dict.fromkeys(map(int, exchange["dropped"]), next(iter(settings.values()), {}))
            counted = {id: own for id, own in settings.items() if VECTORS in own}
            for id, own in counted.items():
                self._add_reply(self.parties[id], own)
            self._add_orders(self.parties[-1], [*counted.values()])

    def _add_reply(self, party: PartyAccount, settings: Mapping[str, Any]) -> None:
        up = settings[VECTORS]["up"]
        party.vectors.update({kind: count for kind, count in up.items() if kind != COUNTS})
        if COUNTS in up:
            party.vectors[COUNTS] = 1  # the same noisy numbers in every round are one release
        if EMBEDDINGS in up and "rows" in settings:
            party.rows.update(settings["rows"])
        elif EMBEDDINGS in up:  # of rows that are predicted, each once
            party.shown += 1

    def _add_orders(self, active: PartyAccount, settings: Sequence[Mapping[str, Any]]) -> None:
        down = [own[VECTORS]["down"] for own in settings]
        active.vectors[GRADIENTS] += sum(own.get(GRADIENTS, 0) for own in down)
        for kind in (EMBEDDINGS, PROTOTYPES, COUNTS):  # all parties are sent the same, with the same noise
            active.vectors[kind] += max((own.get(kind, 0) for own in down), default=0)
        active.vectors = +active.vectors  # kinds that were sent
        for own in settings:
            if GRADIENTS in own[VECTORS]["down"]:
                active.rows.update(own["rows"])

    def told(self) -> dict[str, Any]:
        """The entry of the record: of every party by name, at ``delta``."""
        kinds = [*[EMBEDDINGS] * (len(self.names) - 1), GRADIENTS]
        parties = {
            name: party.told(self.wanted, kind)
            for name, party, kind in zip(self.names, self.parties, kinds, strict=True)
        }
        return {"delta": self.wanted.delta, "test_key": self.wanted.test_key is not None, "parties": parties}


def disclosing(
    wanted: Disclosure, vertical: Vertical | None, lines: Iterable[Mapping[str, Any]]
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return ``disclosed(line)``: for the record, what has left every party up to this round; empty without noise.

    In the record, by party, ``vectors`` are the noisy vectors of each kind that have left it, and ``epsilon`` is what
    all of them together say about any one row of its data; None if it has no bound, as where some kinds are ``exact``.
    ``epsilon_of_a_row`` is what those of one row alone say about this row (of a passive party its embeddings, of the
    active party the gradients that its label gives), ``vectors_of_a_row`` at most.

    Parameters
    ----------
    wanted
        What is noised.
    vertical
        The vertical federation; None if the run is of another kind.
    lines
        The lines of earlier rounds, of a run that is resumed.
    """
    if vertical is None or not wanted.is_noisy:
        return lambda line: {}
    account = Account(wanted, vertical.parties)
    for line in lines:
        account.add(line)

    def disclosed(line: Mapping[str, Any]) -> dict[str, Any]:
        account.add(line)
        return {"disclosed": account.told()}

    return disclosed
