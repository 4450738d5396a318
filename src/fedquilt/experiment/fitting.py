"""Settings that let a group of clients train in less memory, for the advice where nothing fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import parts
from fedquilt.config.schema import Config
from fedquilt.core.tasks import TASKS
from fedquilt.models.quantization import missing_package

_FEW_TOKENS = 64
"""Texts are not advised to be cut below this length."""


class _Change(NamedTuple):
    """One key of ``[model]`` or ``[training]`` with another value."""

    section: str
    key: str
    value: Any

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)
        return f"{self.section}.{self.key} = {value}"


def fitting(config: Config, place: int, fits: Callable[[Config], bool]) -> str:
    """Advice for a group: the changes each of which makes it fit, else the fewest that do so together.

    ``place`` is the number of the group in [[groups]], if there are; ``fits`` says whether a changed config fits.
    """
    several = [*_changes(parts(config)[place].config)]
    alone = [next((one for one in milder if fits(_changed(config, place, one))), None) for milder in several]
    if any(alone):
        return f"set {' or '.join(str(one) for one in alone if one)}"
    together, made = config, list[_Change]()
    for *_, strongest in several:
        together = _changed(together, place, strongest)
        made.append(strongest)
        if len(made) > 1 and fits(together):
            return f"set {', '.join(map(str, made))} together"
    tried = f": {', '.join(map(str, made))} together are not enough" if made else ""
    return f"take a smaller model{tried}"


def _changes(config: Config) -> Iterator[list[_Change]]:
    """What the config does not do yet, each from its mildest to its strongest value; first what costs least."""
    model, training = config.model, config.training
    if not training.gradient_checkpointing:
        yield [_Change("training", "gradient_checkpointing", True)]
    if not KINDS[config.adapter.kind].trains_base:
        if model.dtype != "bfloat16":
            yield [_Change("model", "dtype", "bfloat16")]
        if model.quantization != "nf4":
            kinds = ["int8"] * (model.quantization == "none") + ["nf4"] * (not missing_package("nf4"))
            yield from [[_Change("model", "quantization", kind) for kind in kinds]] if kinds else []
    if training.batch_size > 1:
        yield [_Change("training", "batch_size", size) for size in _halves(training.batch_size, 1)]
    if TASKS[model.task].reads == "text" and model.max_length > _FEW_TOKENS:
        yield [_Change("model", "max_length", size) for size in _halves(model.max_length, _FEW_TOKENS)]


def _halves(size: int, least: int) -> list[int]:
    """Half of ``size``, a quarter and so on, down to ``least``."""
    halves = []
    while size > least:
        size = max(least, size // 2)
        halves.append(size)
    return halves


def _changed(config: Config, place: int, change: _Change) -> Config:
    """The config with one change, in the group's own section where it has one."""
    section, key, value = change
    update: dict[str, Any] = {section: replace(getattr(config, section), **{key: value})}
    own = getattr(config.groups[place], section) if config.groups else None
    if own is not None:
        changed = replace(own, **{key: value}) if section == "model" else own.model_copy(update={key: value})
        group = config.groups[place].model_copy(update={section: changed})
        update = {"groups": (*config.groups[:place], group, *config.groups[place + 1 :])}
    return config.model_copy(update=update)
