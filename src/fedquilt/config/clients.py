"""The sections of a run file on who the clients are: which rows they have, and what they can train."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedquilt.config.value_types import STRICT, Layers, Members, Rank, Share, Text, Written

FREE: ConfigDict = {**STRICT, "extra": "allow"}
"""Of a section with further keys, which are checked against the signature of what takes them."""


class Partition(BaseModel):
    """How the rows are dealt to the clients; further keys are the settings of the scheme.

    ``sites``: every client has rows of its own that nobody else reads, see ``data.source``. The other schemes deal out
    one source. ``iid``, ``natural`` and ``sites`` have none; ``dirichlet`` takes ``alpha`` and ``min_size``,
    ``pathological`` takes ``classes_per_client``, ``pathological-dirichlet`` takes ``classes_per_client``, ``beta`` and
    ``floor``.
    """

    model_config = FREE

    scheme: Text = "iid"
    """``iid``, ``dirichlet``, ``pathological``, ``pathological-dirichlet``, ``natural`` or ``sites``."""
    num_clients: Members = 10
    """Clients in the federation."""
    test_fraction: Share = 0.2
    """Share of each client's rows kept for its own test. With 0 a client is tested on the separate test set, if there
    is one: what all of its group are judged by."""
    validation_fraction: Share = 0.0
    """Share of each client's rows kept for its own validation."""

    @property
    def settings(self) -> dict[str, Any]:
        """The free keys: settings of the scheme."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _leaves_rows_for_training(self) -> Partition:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                f"test_fraction {self.test_fraction} and validation_fraction {self.validation_fraction} "
                "leave no rows for training; their sum must be below 1"
            )
        return self


class Clients(BaseModel):
    """How many blocks each capability group can train, and how many clients take part in a round."""

    model_config = STRICT

    shares: Written = "1-1-1"
    """Relative sizes of the capability groups, weakest first."""
    budgets: Annotated[tuple[Layers, ...], Field(min_length=1, max_length=1000)] = (6, 9, 12)
    """Blocks that a client of each group can train, weakest group first."""
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1, max_length=1000)] | None = None
    """Rank of the adapters of each group, weakest first; ``adapter.rank``, which none may be above, for all if left
    out."""
    cohort: Members | None = None
    """Clients that take part in each round; all if left out."""

    @field_validator("shares")
    @classmethod
    def _are_whole_numbers(cls, shares: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,8}(-[1-9][0-9]{0,8})*", shares):
            raise ValueError("must be whole numbers of at least 1 joined by '-', such as '6-3-1'")
        return shares

    @field_validator("budgets")
    @classmethod
    def _ascend(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if list(budgets) != sorted(budgets):
            raise ValueError(f"must not fall from one group to the next; did you mean {sorted(budgets)}?")
        return budgets

    @model_validator(mode="after")
    def _one_budget_a_group(self) -> Clients:
        groups = len(self.shares.split("-"))
        if self.ranks is not None and groups != len(self.ranks):
            raise ValueError(
                f"shares '{self.shares}' make {groups} groups but there are {len(self.ranks)} ranks "
                f"{list(self.ranks)}; give one rank for each group"
            )
        if groups != len(self.budgets):
            raise ValueError(
                f"shares '{self.shares}' make {groups} groups but there are {len(self.budgets)} budgets "
                f"{list(self.budgets)}; give one budget for each group"
            )
        return self
