"""Settings of LoRA: the keys that a run file has for it, and those of one model's adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

from annotated_types import MaxLen, MinLen

from fedquilt.core.errors import ConfigError
from fedquilt.core.settings import Rank, Rate, Share, Text, problems_of

_Number = TypeVar("_Number", int, float)

MOST_PATTERN_SIGNS = 300
_REPEATED = re.compile(r"(?<!\\)[*+?]")
_PLAIN_PATTERN = re.compile(r"(?:\\[.dw-]|\[[\w.^-]+\]|(?<!\))[*+?]|[\w.$^-]|\((?:\?:)?|[|)])*")


@dataclass(frozen=True)
class LowRank:
    """Adapters with a low-dimensional space."""

    rank: Rank = 16
    """Rank r of every adapter; for a mixture, the dimension of its low-dimensional space."""
    alpha: Rate = 16.0
    """Numerator of the scale alpha / r."""


Targets = Annotated[tuple[Text, ...], MinLen(1), MaxLen(1000)] | Literal["all-linear"]


@dataclass(frozen=True)
class Targeted(LowRank):
    """Adapters at linear modules that the run file names."""

    targets: Targets | None = field(default=None, kw_only=True)
    """Names of the linear modules that get an adapter, or ``all-linear`` for every linear module of the blocks; the
    model's query and value projections if left out."""


@dataclass(frozen=True)
class LoraKeys(Targeted):
    """The keys of LoRA in a run file."""

    dropout: Share = 0.0
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    use_dora: bool = False
    """DoRA: train the norm of each row of an adapted weight too, as a magnitude beside the two factors."""
    rank_pattern: Mapping[str, Rank] = field(default_factory=dict)
    """Other ranks by module path, or by a regular expression for the end of one, as in PEFT. A client with a rank of
    its own has that rank or the module's, whichever is lower."""
    alpha_pattern: Mapping[str, Rate] = field(default_factory=dict)
    """Other alphas, likewise."""

    @property
    def largest_rank(self) -> int:
        """The largest rank that a module may have."""
        return max(self.rank, *self.rank_pattern.values(), 1)

    def pattern_problems(self) -> list[str]:
        """What is wrong with the keys of the patterns, as far as it can be told without a model."""
        return [
            f"{name} {key!r:.80}: {why}"
            for name, table in self._tables
            for key in table
            if (why := pattern_problem(key))
        ]

    @property
    def _tables(self) -> tuple[tuple[str, Mapping[str, float]], ...]:
        return ("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)


@dataclass(frozen=True)
class LoraSettings(LoraKeys):
    """How the linear modules of one model are adapted."""

    targets: tuple[Text, ...] | None = field(default=None, kw_only=True)
    lora_bias: bool = field(default=False, kw_only=True)
    """Whether B has a bias, which is scaled like the product, as in PEFT."""

    def __post_init__(self) -> None:
        """Raise ConfigError if a value is not of its type, a pattern is none, or DoRA is to have a bias."""
        problems = problems_of(self, "adapter") + self.pattern_problems()
        if self.use_dora and self.lora_bias:
            problems.append("use_dora and lora_bias are both true; DoRA's adapters have no bias")
        if problems:
            raise ConfigError(problems)

    def refuse_patterns(self, modules: Collection[str]) -> None:
        """Raise ConfigError if a pattern matches none of these adapted modules, or two patterns disagree about one."""
        problems = []
        for name, table in self._tables:
            matched = {module: [key for key in table if _compiled(key).match(module)] for module in modules}
            idle = table.keys() - {key for keys in matched.values() for key in keys}
            problems += [
                f"adapter.{name} holds '{key}', which matches no adapted module; they are called "
                f"{', '.join(sorted({module.rpartition('.')[2] for module in modules}))}, as in '{min(modules)}'"
                for key in table
                if key in idle
            ]
            problems += [
                f"adapter.{name}: '{keys[0]}' = {table[keys[0]]:g} and '{key}' = {table[key]:g} both match '{module}', "
                "and keys of a table have no order; let only one match it"
                for module, keys in matched.items()
                for key in keys[1:]
                if table[key] != table[keys[0]]
            ][:1]
        if problems:
            raise ConfigError(problems)

    def rank_of(self, module: str) -> int:
        """The rank of the module at this path."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of the module at this path."""
        return _by_pattern(self.alpha_pattern, module, self.alpha)

    def scaling(self, module: str, rank: int | None = None) -> float:
        """The scaling ``s`` of the module at this path, ``alpha / r`` or with rsLoRA ``alpha / sqrt(r)``.

        ``rank`` None means the module's own rank.

        Paper: lora, scaling; rslora, scaling
        """
        rank = self.rank_of(module) if rank is None else rank
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)


def pattern_problem(key: str) -> str:
    """Why a key of ``rank_pattern`` or ``alpha_pattern`` is rejected, or an empty text.

    A key is a module's path or a regular expression for one. Since keys may come from untrusted files, only expressions
    that match any path quickly are accepted: names, ``.``, ``[...]``, ``(a|b)`` and anchors, with at most two repeated
    characters.
    """
    if len(key) > MOST_PATTERN_SIGNS:
        return f"has {len(key):,} characters; a module's path has at most {MOST_PATTERN_SIGNS}"
    if not _PLAIN_PATTERN.fullmatch(key) or len(_REPEATED.findall(key)) > 2:
        return (
            "is no module's path, and a regular expression is taken only of names, '.', '[...]' and '(a|b)', with at "
            "most two of '*', '+' and '?', none behind a bracket ')'; write out the paths"
        )
    try:
        _compiled(key)
    except re.error as error:
        return f"is no regular expression ({error})"
    return ""


def _by_pattern(pattern: Mapping[str, _Number], module: str, otherwise: _Number) -> _Number:
    for key, value in pattern.items():
        if _compiled(key).match(module):
            return value
    return otherwise


@lru_cache(maxsize=10_000)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
