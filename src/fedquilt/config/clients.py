"""The sections [partition] and [clients] of a run file."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedquilt.config.strict import STRICT
from fedquilt.core.settings import Layers, Members, Percent, Rank, Share, Text, Written

FREE: ConfigDict = {**STRICT, "extra": "allow"}
"""The pydantic config of sections with free keys, which are checked against the signature that takes them."""


class Partition(BaseModel):
    """Partition of the rows over clients; further keys are the settings of the scheme.

    With ``sites`` every client has its own rows that no other party reads, see ``data.source``; the other schemes
    partition one source. With ``vertical`` clients are parties that hold other columns of the same rows, see
    [[parties]]. ``iid``, ``natural`` and ``sites`` have no settings; ``dirichlet`` takes ``alpha`` and
    ``min_size``, ``pathological`` takes ``classes_per_client``, ``pathological-dirichlet`` takes
    ``classes_per_client``, ``beta`` and ``floor``, ``vertical`` takes ``aligned``, ``aligned_classes``, ``shots``,
    ``unaligned``, ``tail``, ``unseen``, ``label_noise`` and ``width``.
    """

    model_config = FREE

    scheme: Text = "iid"
    """``iid``, ``dirichlet``, ``pathological``, ``pathological-dirichlet``, ``natural``, ``sites`` or
    ``vertical``."""
    num_clients: Members = 10
    """Number of clients in the federation; with ``vertical`` that of the parties less the active one, which may be left
    out."""
    test_fraction: Share = 0.2
    """Fraction of each client's rows held out as its own test set. With 0 a client is evaluated on the common test set
    of its group, if there is one."""
    validation_fraction: Share = 0.0
    """Fraction of each client's rows held out for its own validation."""

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
    """Budgets of the capability groups, and the size of the cohort."""

    model_config = STRICT

    shares: Written = "1-1-1"
    """Relative sizes of the capability groups, lowest budget first."""
    budgets: Annotated[tuple[Layers | Percent, ...], Field(min_length=1, max_length=1000)] = ("50%", "75%", "100%")
    """Number of blocks that a client of each capability group can train, lowest budget first, or its share of the
    model's blocks, as ``"50%"``, rounded to the nearest number of at least 1."""
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1, max_length=1000)] | None = None
    """LoRA rank of each capability group, lowest budget first, none above ``adapter.rank``; ``adapter.rank`` for all if
    left out."""
    cohort: Members | None = None
    """Number of clients that take part in each round; all if left out."""

    @field_validator("shares")
    @classmethod
    def _are_whole_numbers(cls, shares: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,8}(-[1-9][0-9]{0,8})*", shares):
            raise ValueError("must be whole numbers of at least 1 joined by '-', such as '6-3-1'")
        return shares

    @field_validator("budgets")
    @classmethod
    def _ascend(cls, budgets: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if len({type(budget) for budget in budgets}) > 1:
            raise ValueError("must all be numbers of blocks, or all shares of the model's blocks such as '50%'")
        rising = sorted(budgets, key=lambda budget: int(str(budget).rstrip("%")))
        if list(budgets) != rising:
            raise ValueError(f"must not fall from one group to the next; did you mean {rising}?")
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
