"""Settings of mixtures of adapters: the keys that a run file has for them, and those of one model's mixtures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import MaxLen, MinLen

from fedquilt.adapters.lora.settings import LowRank
from fedquilt.core.errors import ConfigError
from fedquilt.core.settings import Few, Slots, Strength, problems_of

Activation = Literal["gelu", "identity"]
Gate = Literal["uniform", "static", "token"]
Placement = Literal["serial", "parallel"]
Site = Literal["attention", "feed-forward"]
SlotRule = Literal["relative", "spaced", "top"]
Trained = Literal["own", "all"]


@dataclass(frozen=True)
class SharedSites(LowRank):
    """Adapters at places that models of different families and depths have in common."""

    sites: Annotated[tuple[Site, ...], MinLen(1), MaxLen(2)] = ("attention", "feed-forward")
    """Parts of a block with an adapter; the same in all groups that share tensors."""
    slot_rule: SlotRule = "relative"
    """Depth slot of a block: by relative depth; equally spaced blocks one each; or counted from the last block."""
    num_slots: Slots | None = None
    """Number of depth slots, each with its own shared tensors; the number of blocks of the shallowest model if left
    out."""


@dataclass(frozen=True)
class MixtureKeys(SharedSites):
    """The keys of mixtures of adapters in a run file."""

    activation: Activation = "gelu"
    """Activation in the low-dimensional space; with ``identity`` and without token gates, the mixture is linear and can
    be merged into the weights."""
    gate: Gate = "static"
    """Weights of the branches: equal, learned per site, or a learned function of each token."""
    placement: Placement = "serial"
    """Input of the adapter: the output of the part that it follows (``serial``), or the input of that part's last
    module (``parallel``)."""
    branches: Few | None = None
    """Number of branches of each slot and site; the number of architectures if left out."""
    trained: Trained = "all"
    """Branches that a client trains: only that of its architecture (``own``), or all."""
    deviation: Strength | None = None
    """Branches are drawn with variance ``deviation^2 / r``; if left out 0 with ``own`` and 0.02 with ``all``."""


@dataclass(frozen=True)
class MixtureSettings(MixtureKeys):
    """How one model is adapted; ``rank``, ``branches`` and ``num_slots`` are the same for all models that share.

    The numbers of slots and branches M are known. A gate is 1/M (``uniform``), the softmax of M numbers per site
    (``static``), or the softmax of a linear map of each token (``token``).
    """

    num_slots: int = field(kw_only=True)
    branches: int = field(kw_only=True)

    def __post_init__(self) -> None:
        """Raise ConfigError if a value is not of its type, or values contradict each other."""
        problems = problems_of(self, "adapter")
        if len(set(self.sites)) < len(self.sites):
            problems.append(f"adapter.sites is {list(self.sites)}; give each once")
        if self.deviation == 0 and self.trained == "all" and self.branches > 1:
            problems.append(
                "adapter.deviation is 0, so all branches would be equal and stay equal in training; "
                "give a number above 0, such as 0.02, or set adapter.trained = 'own'"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def scaling(self) -> float:
        """The scaling ``s = alpha / r``."""
        return self.alpha / self.rank

    @property
    def drawn_deviation(self) -> float:
        """The ``deviation`` with its default filled in."""
        return (0.02 if self.trained == "all" else 0.0) if self.deviation is None else self.deviation
