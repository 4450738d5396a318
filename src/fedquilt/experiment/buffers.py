"""What a config says on running statistics and their like, where the weights are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Layout


def buffers_of(layouts: Iterable[Layout]) -> frozenset[str]:
    """The names of all buffers in these layouts."""
    return frozenset[str]().union(*(layout.buffers for layout in layouts))


def kept_by_clients(config: Config, layouts: Iterable[Layout]) -> frozenset[str]:
    """Tensors that each client keeps as its own: the head's, or buffers, as ``config`` says, which is a group's."""
    kept = frozenset[str]()
    for layout in layouts:
        kept |= layout.head if config.head.policy == "local" else frozenset()
        kept |= layout.buffers if config.adapter.buffers == "local" else frozenset()
    return kept


def refuse_layouts(config: Config, groups: Sequence[Any]) -> None:
    """Raise ConfigError if what the config asks for cannot be had with the layouts of these groups.

    ``groups`` have ``config``, ``architecture`` and ``layout``.

    Raises
    ------
    ConfigError
        with everything that cannot.
    """
    problems = []
    if config.privacy.mode == "central" and len({group.architecture for group in groups}) > 1:
        problems.append(
            "privacy.mode = 'central': with groups of heterogeneous architectures there is no one sum of all clients "
            "to put noise on; set privacy.mode = 'local', or let all groups have one model, head and adapter"
        )
    for group in groups:
        policy, buffers = group.config.adapter.buffers, group.layout.buffers
        if policy == "local" and not buffers:
            problems.append(
                f"adapter.buffers = 'local': {group.architecture} has no running statistics that a client could keep; "
                "leave it out"
            )
        if policy == "average" and buffers and config.privacy.mode != "none":
            problems.append(
                f"privacy.mode = '{config.privacy.mode}': {group.architecture} has running statistics "
                f"('{min(buffers)}'), whose averages would leave the clients; clipping and noise are made for updates "
                "of weights, and a variance with noise may be below 0. Set adapter.buffers = 'local'"
            )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
