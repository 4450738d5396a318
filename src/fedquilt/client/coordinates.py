"""How one model's axes are found: by the consensus of all models, or pairwise to the smallest one.

A way says what an architecture sends of one place, and what it makes of the answer at a module of its own. It reads
features on the public inputs before the module, (N, d_in), and after it, (N, d_out). A head has none after it, as it
needs no way back from the coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedquilt.adapters.common.settings import Axes as Settings
from fedquilt.aggregate.anchor import anchored_decoder, anchored_encoder, drawn_columns, rank_outputs
from fedquilt.aggregate.axes import POINT, Axes, basis, decoder, mean, solve
from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng

OUTPUTS, COLUMNS = "outputs", "columns"
"""Last parts of the names of what the anchor says of a module's outputs."""


class Way(Protocol):
    """How axes are found."""

    def shapes(self, place: str, count: int, width: int, outputs: int | None) -> dict[str, tuple[int, ...]]:
        """The shapes of ``sent``, for ``count`` observations of ``width`` features before and ``outputs`` after."""
        ...

    def sent(self, place: str, before: Tensor, after: Tensor | None) -> dict[str, Tensor]:
        """What the architecture sends of a place, by name."""
        ...

    def axes(self, place: str, points: Mapping[str, Tensor], before: Tensor, after: Tensor | None) -> Axes:
        """The axes of a module at a place; without features after it, the decoder has no meaning.

        Raises
        ------
        TrainingError
            if a tensor of the place is missing or of another shape; they may come from a server.
        """
        ...


@dataclass(frozen=True)
class Consensus:
    """Axes of what all models agree on, see ``aggregate.axes``: a basis is sent, common coordinates come back."""

    settings: Settings
    rank: int

    def shapes(self, place: str, count: int, width: int, outputs: int | None) -> dict[str, tuple[int, ...]]:
        """One basis."""
        return {place: (count, min(self.settings.basis, count, width))}

    def sent(self, place: str, before: Tensor, after: Tensor | None) -> dict[str, Tensor]:
        """The basis of the features before the module."""
        return {place: basis(before, self.settings.basis, ridge=self.settings.ridge)}

    def axes(self, place: str, points: Mapping[str, Tensor], before: Tensor, after: Tensor | None) -> Axes:
        """The ridge solution before the module, with the decoder of the features after it."""
        z = _checked(points, place, (len(before), self.rank), before)
        entry = solve(before, z, ridge=self.settings.ridge)
        if after is None:
            return entry
        return entry._replace(decoder=decoder(after, z))


@dataclass(frozen=True)
class Anchored:
    """Axes aligned to those of the smallest model, see ``aggregate.anchor``: what it sends comes back to all.

    Its factors are drawn from ``rng``, for each place apart, so that any client of its architecture sends the same.
    """

    settings: Settings
    rank: int
    rng: Rng

    def shapes(self, place: str, count: int, width: int, outputs: int | None) -> dict[str, tuple[int, ...]]:
        """Rank-space outputs, whitened outputs, and the drawn factor in these."""
        found: dict[str, tuple[int, ...]] = {place: (count, self.rank)}
        if outputs is not None:
            kept = min(self.settings.basis, count, outputs)
            found |= {f"{place}.{OUTPUTS}": (count, kept), f"{place}.{COLUMNS}": (kept, self.rank)}
        return found

    def sent(self, place: str, before: Tensor, after: Tensor | None) -> dict[str, Tensor]:
        """What this model says as the anchor."""
        own, ridge = self.rng.child("anchor", place), self.settings.ridge
        found = {place: rank_outputs(before, self.rank, own.child("A"))}
        if after is not None:
            made = drawn_columns(after, self.rank, self.settings.basis, own.child("B"), ridge=ridge)
            found |= dict(zip((f"{place}.{OUTPUTS}", f"{place}.{COLUMNS}"), made, strict=True))
        return found

    def axes(self, place: str, points: Mapping[str, Tensor], before: Tensor, after: Tensor | None) -> Axes:
        """The model's factors: the rows of A are orthonormal, and B is mapped by canonical correlation."""
        (count, width), ridge = before.shape, self.settings.ridge
        z = _checked(points, place, (count, self.rank), before)
        encoder = anchored_encoder(before, z, ridge=ridge)
        centre = mean(before)
        if after is None:
            return Axes(centre, encoder, torch.zeros(width, 0, dtype=torch.float64))
        columns = points.get(f"{POINT}.{place}.{COLUMNS}")
        kept = self.settings.basis if columns is None or columns.dim() != 2 else min(len(columns), self.settings.basis)
        columns = _checked(points, f"{place}.{COLUMNS}", (kept, self.rank), before)
        outputs = _checked(points, f"{place}.{OUTPUTS}", (count, kept), before)
        return Axes(centre, encoder, anchored_decoder(after, outputs, columns, ridge=ridge))


def _checked(points: Mapping[str, Tensor], name: str, shape: tuple[int, int], near: Tensor) -> Tensor:
    """The points of this name, where ``near`` is."""
    found = points.get(f"{POINT}.{name}")
    if found is None or found.shape != shape:
        given = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise TrainingError(f"the common coordinates of '{name}' are {given}; this model needs {shape}")
    return found.to(near.device)
