"""One line of text for each round, for the progress output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.report.runs import diverged
from fedquilt.report.scores import score_of

_SHORT = 10.0  # seconds that are not worth an estimate


def duration(seconds: float) -> str:
    """Return a duration in words, in at most two units, such as ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, days = minutes // 60, minutes // (24 * 60)
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} days {hours % 24} h"


def left_text(seconds: float, runs: int = 1) -> str:
    """Return a text of the time that is left, of all ``runs`` that are not finished; empty for a few seconds."""
    if seconds < _SHORT:
        return ""
    return f"about {duration(seconds)} left" + (f" of {runs} runs" if runs > 1 else "")


def round_text(line: Mapping[str, Any], brief: bool = False) -> str:
    """Return a round's mean loss over its clients, accuracy and epsilon if any.

    Unless ``brief``, its seconds follow, and the time that is left if the line has an estimate.
    """
    losses = [
        client["metrics"]["loss"]
        for exchange in line["exchanges"]
        for client in exchange["clients"].values()
        if "loss" in client["metrics"]
    ]
    replied = {client for exchange in line["exchanges"] for client in exchange["clients"]}
    # under differential privacy clients do not send their loss
    words = [f"loss {sum(losses) / len(losses):.3f}" if losses else _counted(len(replied))]
    scores = line["evaluation"] or {}
    whole, own, received = (score_of(line, "accuracy", who) for who in ("global", "clients-mean", "received-mean"))
    if whole is not None:
        words.append(f"accuracy {whole:.1%}")
    if measured := {label: one["accuracy"] for label, one in (scores.get("groups") or {}).items() if one}:
        worst = min(measured, key=lambda label: measured[label])
        words.append(f"worst group {worst} {measured[worst]:.1%}")
    if own is not None and not (brief and whole is not None):
        words.append(f"clients' mean {own:.1%}")
    if received is not None and own is None and not (brief and whole is not None):
        words.append(f"clients' mean on receipt {received:.1%}")
    if spent := line.get("privacy"):
        words.append("no epsilon" if spent["epsilon"] is None else f"epsilon {spent['epsilon']:.2f}")
    if not brief:
        words += [f"{line['seconds']:.1f} s", left_text(line.get("seconds_left", 0.0), line.get("runs_left", 1))]
    return ", ".join(word for word in words if word)


def dropped_texts(line: Mapping[str, Any]) -> list[str]:
    """Return one text for each client dropped in a round, with the reason; clients are named if the line has names."""
    names = line.get("names") or {}
    dropped = [lost for exchange in line["exchanges"] for lost in exchange["dropped"].items()]
    return [f"client {names.get(client, client)} dropped: {reason}" for client, reason in dropped]


def notices(line: Mapping[str, Any]) -> list[str]:
    """Return what the user should know of a round.

    That is dropped clients, models at the server whose training diverged, and in the first round places without
    agreement.
    """
    poor = (line.get("state") or {}).get("poor_agreement") if line["round"] == 0 else None
    texts = [f"the models do not agree at {', '.join(poor)}: nothing can be shared there"] if poor else []
    kept = [f"training of '{who}' at the server diverged; it stays as it was" for who in diverged(line)]
    return [*dropped_texts(line), *kept, *texts]


def _counted(replied: int) -> str:
    return f"{replied} client{'' if replied == 1 else 's'} replied" if replied else "nobody trained"
