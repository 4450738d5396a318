"""``fedquilt plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.cli.screen import out, show_json, show_table
from fedquilt.config.parties import active_place
from fedquilt.core.errors import ConfigError
from fedquilt.report.table import human_bytes

if TYPE_CHECKING:
    from fedquilt.config.schema import Config
    from fedquilt.experiment.needs import ClientPlan, Needs, ServerPlan


def plan(
    config: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to override.")] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            "--memory",
            help="Gigabytes per client of each group, as in 12,24,80; capability groups from the lowest budget on, "
            "[[groups]] in their order. May be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show layers, communication and memory of each client.

    Neither weights nor data are loaded. With --memory, find the number of layers and the rank that fit for each group.
    """
    from fedquilt.config.load import load

    settings, _ = load(config, changes or [])
    # importing takes seconds, so errors of the run file come first
    from fedquilt.experiment.memory import afforded, budget_lines, budgeted
    from fedquilt.experiment.plan import whole_plan

    groups = afforded(settings, _numbers(memory)) if memory else ()
    if groups:
        settings = budgeted(settings, groups)
    plans, server = whole_plan(settings)
    if as_json:
        rows = [asdict(one) | {"peak_bytes": one.peak_bytes, "saving": one.saving} for one in plans]
        more: dict[str, Any] = {"groups": [asdict(group) for group in groups]} if groups else {}
        if server is not None:
            more["server"] = asdict(server) | {"peak_bytes": server.peak_bytes}
        show_json({**more, "plans": rows} if more else rows)
        return
    if settings.parties:
        _show_parties(plans, server, settings)
        return
    _show_clients(plans, server, settings)
    if groups:
        fitted = [["group", "memory", "layers", "rank", "peak"]]
        for number, group in enumerate(groups):
            rank = "-" if group.rank is None else str(group.rank)
            fits = human_bytes(group.memory_bytes), str(group.layers), rank, human_bytes(group.peak_bytes)
            fitted.append([group.group or str(number), *fits])
        show_table(fitted, "Layers and rank per group")
        out.print(
            "Put this into the run file; leave a margin for the program, its libraries and what the device keeps.\n",
            highlight=False,
        )
        out.print(budget_lines(groups), markup=False, highlight=False, soft_wrap=True)


def _show_clients(plans: Sequence[ClientPlan], server: ServerPlan | None, settings: Config) -> None:
    """Print what each client trains, sends and needs."""
    labelled = any(one.group for one in plans)
    moved = [
        ["client", *(["group"] if labelled else []), "budget", "layers trained", "parameters", "down", "up", "saved"]
    ]
    needed = [["client", "weights", "gradients", "optimiser", "activations", "peak"]]
    for one in plans:
        moved.append(
            [
                str(one.client),
                *([one.group] if labelled else []),
                str(one.budget),
                _ranges(one.layers),
                f"{one.trained_parameters:,}",
            ]
        )
        moved[-1] += [human_bytes(one.bytes_down), human_bytes(one.bytes_up), f"{one.saving:.2%}"]
        needed.append([str(one.client), *_memory(one)])
    needed += [] if server is None else [["server", *_memory(server)]]
    show_table(moved, "Trained and sent by each client in one round")
    show_table(needed, f"Memory of each client{'' if server is None else ', and of the server for the model it owns'}")
    classes = list(dict.fromkeys(one.num_classes for one in plans if one.num_classes))
    head = f" A head of {' or '.join(map(str, classes))} classes is included." if classes else ""
    whole = " or ".join(human_bytes(size) for size in dict.fromkeys(one.model_bytes for one in plans))
    out.print(
        f"down, up: bytes of adapters and head in network.dtype{_texts(settings)}. saved: communication saved against "
        f"sending the whole model both ways ({whole} each way). peak: sum of weights, gradients, optimiser state and "
        "the most that a forward and backward pass holds besides; the program and its libraries, about 0.3 GB on the "
        f"CPU, come on top.{head}{_once(plans)}",
        highlight=False,
        soft_wrap=not out.is_terminal,
    )


def _show_parties(plans: Sequence[ClientPlan], active: ServerPlan | None, settings: Config) -> None:
    """Print what each party of a vertical federation trains, sends and needs; the active one is the server."""
    moved = [["party", "parameters", "down", "up", "evaluation down", "evaluation up"]]
    needed = [["party", "weights", "gradients", "optimiser", "activations", "peak"]]
    for one in plans:
        sizes = (one.bytes_down, one.bytes_up, one.evaluation_down, one.evaluation_up)
        moved.append([one.group, f"{one.trained_parameters:,}", *map(human_bytes, sizes)])
        needed.append([one.group, *_memory(one)])
    if active is not None:
        name = f"{settings.parties[active_place(settings.parties)].label} (active)"
        moved.append([name, f"{active.trained_parameters:,}", "-", "-", "-", "-"])
        needed.append([name, *_memory(active)])
    show_table(moved, "Trained by each party, and sent to and by it in one round")
    show_table(needed, "Memory of each party")
    out.print(
        "down, up: bytes of embeddings, their gradients and prototypes in a round, to and from the active party. An "
        "evaluation comes on top in rounds that are evaluated: embeddings of all test rows. parameters: the encoder's "
        "trained tensors and the prototypes, and of the active party also the joint model's. peak: sum of weights, "
        "gradients, optimiser state and the most that a pass over a minibatch holds besides.",
        highlight=False,
        soft_wrap=not out.is_terminal,
    )
    if settings.disclosure.is_on:
        what = f"What leaves a party: {settings.disclosure.words()}."
        out.print(what, highlight=False, soft_wrap=not out.is_terminal)


def _memory(needs: Needs) -> list[str]:
    parts = (needs.weight_bytes, needs.gradient_bytes, needs.optimizer_bytes, needs.activation_bytes, needs.peak_bytes)
    return [human_bytes(part) for part in parts]


def _texts(settings: Config) -> str:
    """What else travels where the server asks questions."""
    return "" if settings.server is None else ", and of the texts and numbers that go with the server's questions"


def _once(plans: Sequence[ClientPlan]) -> str:
    """What is exchanged once, as a sentence; "" if nothing is."""
    down, up = (max(sizes) for sizes in ([one.once_down for one in plans], [one.once_up for one in plans]))
    if not down + up:
        return ""
    return (
        f" Common coordinates of the public inputs come on top once, in the first round: {human_bytes(down)} down, and "
        f"{human_bytes(up)} up from a client of the first cohort."
    )


def _numbers(given: list[str]) -> list[float]:
    try:
        return [float(number) for text in given for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--memory: {' '.join(given)}; give gigabytes as numbers, as in 12,24,80") from error


def _ranges(layers: tuple[int, ...]) -> str:
    """``0-2,5`` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
