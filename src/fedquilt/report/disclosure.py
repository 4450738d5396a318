"""What left the parties of a vertical run, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.core.disclosure import Disclosure
from fedquilt.report.parties import is_vertical
from fedquilt.report.runs import Run


def disclosure_words(run: Run) -> str:
    """Return sentences on what was clipped and noised before it left a party; empty where nothing was.

    The epsilons are those of the party of which they say least.
    """
    known = run.config.get("disclosure") or {}
    wanted = Disclosure(**known)
    if not (is_vertical(run) and wanted.is_on):
        return ""
    words = f"before it left a party, this was done: {wanted.words()}."
    told = run.rounds[-1].get("disclosed")
    if told is None:
        return f"{words} Without noise there is no differential privacy."
    parties = [*told["parties"].items()]
    for key, of_what in (("epsilon", "all that left it"), ("epsilon_of_a_row", "what left it about this row alone")):
        words += f" {_worst(parties, key, of_what)}"
    words += f" Delta is {told['delta']:g}."
    if told["test_key"]:
        words += " The noise was drawn from a test key and protects nothing against those who know the key."
    return words


def _worst(parties: list[tuple[str, Mapping[str, Any]]], key: str, of_what: str) -> str:
    """Return the largest epsilon of any party in words; ``of_what`` says what it covers."""
    without = [name for name, own in parties if own[key] is None]
    if without:
        where = ", ".join(without)
        return f"Epsilon of a row, in {of_what}, has no bound at {where}: a part of it had no noise, or hardly any."
    name, most = max(((name, own[key]) for name, own in parties), key=lambda one: float(one[1]))
    return f"Epsilon of a row, in {of_what}, is at most {most:.3g} ({name})."
