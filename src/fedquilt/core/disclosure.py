"""Clipping and noise of what leaves a party of a vertical federation: the section [disclosure] of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from fedquilt.core.settings import Factor, Seed

EMBEDDINGS, GRADIENTS, PROTOTYPES, COUNTS = "embeddings", "gradients", "prototypes", "counts"
"""The kinds of what leaves a party."""

KEYS = {
    "embedding_noise": EMBEDDINGS,
    "gradient_clip": GRADIENTS,
    "gradient_noise": GRADIENTS,
    "prototype_noise": PROTOTYPES,
    "count_noise": COUNTS,
}
"""The key of each clipping and noise, and the kind that it is of."""

Noise = Annotated[float, Ge(0), Le(1000)]


@dataclass(frozen=True)
class Disclosure:
    """Noise on what leaves a party of a vertical federation, in both directions.

    What is noised is clipped first, and noise is Gaussian: its standard deviation is the setting times the bound, that
    of numbers of rows the setting itself. The guide on vertical federations says what this protects and what it does
    not.
    """

    embedding_noise: Noise = 0.0
    """Noise on every embedding, whose norm is at most 1; the party sends the noisy one with norm 1."""
    gradient_clip: Factor | None = None
    """Largest norm of the gradient of a row's own loss with respect to its embedding, and of a minibatch's mean loss
    with respect to a class prototype; longer ones are scaled down to it. Not clipped if left out."""
    gradient_noise: Noise = 0.0
    """Noise on these gradients, as a multiple of ``gradient_clip``, which it needs."""
    prototype_noise: Noise = 0.0
    """Noise on every class prototype, and on every row of a classifier that parties share, whose norm is at most 1."""
    count_noise: Noise = 0.0
    """Noise on the numbers of a party's rows by class, in rows; class priors are then those of the noisy numbers."""
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    """The delta of the epsilons in the record."""
    test_key: Seed | None = None
    """Makes the noise reproducible, and worthless against anyone who knows the key; for tests. Otherwise every party
    draws a key of its own, which stays with it."""

    def __post_init__(self) -> None:
        """Refuse noise on gradients without a bound on them."""
        if self.gradient_noise and self.gradient_clip is None:
            raise ValueError(
                f"gradient_noise = {self.gradient_noise:g}: is a multiple of gradient_clip, which is left out; set it"
            )

    @property
    def noises(self) -> dict[str, float]:
        """The noise of each kind, as a multiple of its bound, of counts in rows; 0 for none."""
        return {kind: getattr(self, key) for key, kind in KEYS.items() if key.endswith("noise")}

    @property
    def is_noisy(self) -> bool:
        """Whether anything is noised."""
        return any(self.noises.values())

    @property
    def is_on(self) -> bool:
        """Whether anything is clipped or noised."""
        return self.is_noisy or self.gradient_clip is not None

    def words(self) -> str:
        """What is clipped and noised, as part of a sentence."""
        units = {COUNTS: "rows"}
        found = [
            f"{kind} noised ({noise:g} {units.get(kind, 'times their bound')})"
            for kind, noise in self.noises.items()
            if noise
        ]
        if self.gradient_clip is not None:
            found.insert(0, f"gradients clipped to {self.gradient_clip:g}")
        exact = [kind for kind, noise in self.noises.items() if not noise]
        return ", ".join(found) + (f"; exact: {', '.join(exact)}" if exact else "")
