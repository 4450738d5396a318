"""Rows of the table of contradictions, and their messages with alternative settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from fedquilt.adapters.registry import KINDS
from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.config.error_text import shown
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.config.sections import default_of
from fedquilt.core.federation import Rule
from fedquilt.experiment.method import Chosen, lowrank_rule
from fedquilt.methods.registry import ENTRIES, Factory, defaults, entry_of, traits_of
from fedquilt.methods.traits import Traits

MOST = 8
"""Largest number of other methods that a message names; if more of them fit, it names none."""

_SENT = {
    "A": "only A is sent",
    "B": "only B is sent",
    "alternating": "one factor is sent in each round",
    "nothing": "nothing is sent",
}


@dataclass(frozen=True)
class Case:
    """A config, its groups and its method, which the rows of the table are checked for."""

    config: Config
    parts: Sequence[Part]
    method: Chosen

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of adapter of all groups."""
        return frozenset(part.config.adapter.kind for part in self.parts)

    @property
    def dora(self) -> bool:
        """Whether the adapters of a group have DoRA's magnitudes."""
        return any(part.config.adapter.use_dora for part in self.parts)

    @property
    def rule(self) -> Rule | None:
        """The low-rank rule in use: the method's own, or that of the config."""
        return self.method.traits.rule or lowrank_rule(self.config)

    @property
    def ruled(self) -> bool:
        """Whether the config asks for another aggregation rule than the mean."""
        return self.config.aggregation.rule != "mean"

    @property
    def combined(self) -> bool:
        """Whether the config asks for an aggregation rule that combines low-rank factors."""
        return self.config.aggregation.rule in RULES

    @property
    def aligned(self) -> bool:
        """Whether the config asks for alignment of the updates."""
        return self.config.aggregation.align != "none"

    @property
    def stepped(self) -> bool:
        """Whether the config asks for a server optimiser."""
        return self.config.aggregation.server_optimizer != "none"

    @property
    def private(self) -> bool:
        """Whether the config asks for differential privacy."""
        return self.config.privacy.mode != "none"

    @property
    def central(self) -> bool:
        """Whether the config asks for central differential privacy: noise on the sum of all updates."""
        return self.config.privacy.mode == "central"

    def differs(self, section: str, key: str) -> bool:
        """Whether a key of [adapter] or [head] differs between groups."""
        return len({getattr(getattr(part.config, section), key) for part in self.parts}) > 1

    def changed(self, section: str, key: str) -> bool:
        """Whether a key of a section differs from its default."""
        table = getattr(self.config, section)
        return bool(getattr(table, key) != default_of(type(table), key))


class Row(NamedTuple):
    """One contradiction: the config asks for something (``asked``) that a method with such ``traits`` cannot do.

    ``traits`` is None for a contradiction within the config. In the ``message``, ``{name}``, ``{config...}`` and
    ``{rule...}`` are those of the case. ``{culprit}`` is the method, or the settings of it that cause these traits, and
    ``{instead}`` advises other settings or methods; ``text`` lists the other fields.
    """

    asked: Callable[[Case], Any]
    traits: Callable[[Traits], Any] | None
    message: str

    def holds(self, case: Case) -> bool:
        """Whether the case has this contradiction."""
        return bool(self.asked(case)) and (self.traits is None or bool(self.traits(case.method.traits)))

    def text(self, case: Case) -> str:
        """The message for the case."""
        method, rule = case.method, case.config.aggregation
        return self.message.format(
            name=method.name,
            config=case.config,
            mode=f"privacy.mode = '{case.config.privacy.mode}'",
            given=f"aggregation.rule = '{rule.rule}'",
            align=f"aggregation.align = '{rule.align}'",
            step=f"aggregation.server_optimizer = '{rule.server_optimizer}'",
            rule=case.rule,
            sent=_SENT.get(method.traits.sends),
            by_group=_ByGroup(case.parts),
            leave=_Leave(method.settings),
            **_blamed(self, method),
        )


def odd_ranks(parts: Sequence[Part]) -> list[str]:
    """Problems with ranks of clients whose kind of adapter has one rank for all, or none."""
    problems = []
    for part in parts:
        adapter, ranks = part.config.adapter, part.config.clients.ranks or ()
        allowed = KINDS[adapter.kind].ranks
        odd = sorted({rank for rank in ranks if allowed == "none" or rank != adapter.rank})
        if allowed == "own" or not odd:
            continue
        key = "clients.ranks" if not part.label else f"groups[{part.place}].rank"
        given = f"{key} holds {', '.join(map(str, odd))} and "
        problems.append(
            f"{given}adapter.kind = '{adapter.kind}' has no adapters that could have a rank; leave {key} out"
            if allowed == "none"
            else f"{given}adapter.rank is {adapter.rank}: with adapter.kind = '{adapter.kind}' all clients have the "
            f"same rank; leave {key} out"
        )
    return problems


def odd_steps(case: Case) -> list[str]:
    """Problems with packing where the server computes a client's number of steps from its number of examples."""
    traits = case.method.traits
    if not case.aligned and (traits.alignment in (None, "none") or traits.merge != "mean"):
        return []
    trainings = [part.config.training for part in case.parts]
    problem = (
        "training.packing = true: with training.epochs the number of steps depends on how the examples fit into rows, "
        "which the server cannot know, and the alignment of updates needs it; set training.steps"
    )
    return [problem] if any(training.packing and training.steps is None for training in trainings) else []


def _blamed(row: Row, method: Chosen) -> dict[str, str]:
    """The fields ``culprit`` and ``instead``: other settings of the method if any help, or else other methods."""
    if row.traits is None:
        return {}
    clashes = row.traits
    fixes = dict(_fixes(clashes, method))
    if fixes:
        culprits = [f"method.{key} = {shown(method.settings[key])}" for key in fixes]
        changes = [f"method.{key} = {' or '.join(map(shown, values))}" for key, values in fixes.items()]
        return {"culprit": " and ".join(culprits), "instead": f"set {', or '.join(changes)}"}
    others = [
        name
        for name, factory in ((name, entry_of(name).factory) for name in ENTRIES)
        if len(defaults(factory)) == len(_settings(factory)) and not clashes(traits_of(name))
    ]
    which = f"take one of {', '.join(others)}" if len(others) <= MOST else "take another method"
    return {"culprit": f"method.name = '{method.name}'", "instead": which}


def _fixes(clashes: Callable[[Traits], Any], method: Chosen) -> Iterator[tuple[str, list[Any]]]:
    """The settings of the method that resolve the contradiction, each with the values that do."""
    for key, annotation in _settings(method.factory).items():
        others = [value for value in _choices(annotation) if value != method.settings[key]]
        fits = [other for other in others if not clashes(traits_of(method.name, {**method.settings, key: other}))]
        if fits:
            yield key, fits


def _settings(factory: Factory) -> dict[str, Any]:
    """The types of a factory's settings by name."""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    return {one.name: one.annotation for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` or of a bool; empty for other types."""
    if annotation is bool:
        return (True, False)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    inner = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return tuple(choice for one in inner for choice in _choices(one))


class _ByGroup:
    """The value of a key of [adapter] in each group: ``{by_group[rank]}`` in a message."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def __getitem__(self, key: str) -> str:
        return ", ".join(f"{part.label} {getattr(part.config.adapter, key)!r}" for part in self.parts)


class _Leave:
    """Advice to set a key in [method] if the method has it, or else to leave it out: ``{leave[split]}``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def __getitem__(self, key: str) -> str:
        return f"set method.{key}" if key in self.settings else "leave it out"
