"""Settings for buffers such as running statistics under full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedquilt.config.schema import Config
from fedquilt.config.sections import default_of
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Layout


def buffers_of(layouts: Iterable[Layout]) -> frozenset[str]:
    """The names of all buffers in these layouts."""
    return frozenset[str]().union(*(layout.buffers for layout in layouts))


def kept_by_clients(config: Config, layouts: Iterable[Layout]) -> frozenset[str]:
    """Tensors that each client keeps local under a group's config: those of the head, or buffers."""
    kept = frozenset[str]()
    for layout in layouts:
        kept |= layout.head if config.head.policy == "local" else frozenset()
        kept |= layout.buffers if config.adapter.buffers == "local" else frozenset()
    return kept


def refuse_layouts(config: Config, groups: Sequence[Any]) -> None:
    """Raise ConfigError, with every problem, if the config does not fit the layouts of its groups.

    ``groups`` have ``config``, ``architecture`` and ``layout``.
    """
    problems = []
    if config.privacy.mode == "central" and len({group.architecture for group in groups}) > 1:
        problems.append(
            "privacy.mode = 'central': groups of different architectures have no common sum of updates to add "
            "noise to; set privacy.mode = 'local', or give all groups the same model, head and adapter"
        )
    if len({group.architecture for group in groups}) == 1:
        problems += [
            f"axes.{key} = {value!r}: has no effect, as all clients have the same architecture; leave it out"
            for key, value in ((key, getattr(config.axes, key)) for key in ("share", "control", "min_agreement"))
            if value != default_of(type(config.axes), key)
        ]
    for group in groups:
        policy, buffers = group.config.adapter.buffers, group.layout.buffers
        if policy == "local" and not buffers:
            problems.append(
                f"adapter.buffers = 'local': {group.architecture} has no running statistics to keep local; leave it out"
            )
        if policy == "average" and buffers and config.privacy.mode != "none":
            problems.append(
                f"privacy.mode = '{config.privacy.mode}': {group.architecture} has running statistics "
                f"('{min(buffers)}'), which clients would send for averaging; clipping and noise only suit updates of "
                "weights, and a variance with noise may be negative; set adapter.buffers = 'local'"
            )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
