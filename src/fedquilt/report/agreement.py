"""How far models agree in their common coordinates."""

from __future__ import annotations

from fedquilt.report.runs import Run


def agreement_of(run: Run) -> dict[str, float]:
    """Return the mean correlation of held-out coordinates by place, as last recorded; empty without any."""
    found = ((line.get("state") or {}).get("agreement") for line in reversed(run.rounds))
    return next((dict(one) for one in found if one), {})


def agreement_words(run: Run) -> str:
    """Return a sentence on the agreement of a run's models; empty if none was recorded."""
    found = agreement_of(run)
    if not found:
        return ""
    lowest = min(found, key=lambda place: found[place])
    mean = sum(found.values()) / len(found)
    words = f"common coordinates of held-out public inputs correlate by {mean:.2f} between models, the mean over places"
    return f"{words}; the least is {found[lowest]:.2f} ({lowest})."
