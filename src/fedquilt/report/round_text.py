"""One line of text for each round, for the progress output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.report.scores import score_of


def round_text(line: Mapping[str, Any], brief: bool = False) -> str:
    """Return a round's mean loss over its clients, accuracy and epsilon if any, and, unless ``brief``, its seconds."""
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
    return ", ".join(words if brief else [*words, f"{line['seconds']:.1f} s"])


def dropped_texts(line: Mapping[str, Any]) -> list[str]:
    """Return one text for each client dropped in a round, with the reason; clients are named if the line has names."""
    names = line.get("names") or {}
    dropped = [lost for exchange in line["exchanges"] for lost in exchange["dropped"].items()]
    return [f"client {names.get(client, client)} dropped: {reason}" for client, reason in dropped]


def _counted(replied: int) -> str:
    return f"{replied} client{'' if replied == 1 else 's'} replied" if replied else "nobody trained"
