"""The section [aggregation] of a run file: the rule, the server optimiser, and the alignment of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from fedquilt.core.errors import ConfigError
from fedquilt.core.settings import Penalty, RankOrZero, Rate, Share, Strength, problems_of

TensorRule = Literal["mean", "median", "trimmed-mean", "clipped-mean"]
LowRankRule = Literal["flexlora", "hetlora", "flora", "fedex-lora", "lora-fair", "fedrot-lora", "florg", "fedrpca"]
Split = Literal["left", "even"]
Normalize = Literal["all", "segment"]
Align = Literal["none", "mean", "projection", "reference", "soft"]
AlignPer = Literal["module", "tensor", "global"]


@dataclass(frozen=True)
class _Checked:
    """Settings that are held to their types where a program makes them."""

    def __post_init__(self) -> None:
        """Raise ConfigError if a value is not of its type."""
        if problems := problems_of(self, "aggregation"):
            raise ConfigError(problems)


@dataclass(frozen=True)
class RuleSettings(_Checked):
    """How the server combines the clients' tensors."""

    rule: Literal[TensorRule, LowRankRule] = "mean"
    """``median``, ``trimmed-mean`` and ``clipped-mean`` limit the influence of a few malicious clients; median and
    trimmed mean count every client once. The other rules combine adapters as the method of the same name does, with
    this method's choice of layers; the head is averaged."""
    trim_share: Annotated[float, Ge(0), Lt(0.5)] = 0.1
    """Fraction of the smallest and of the largest values that ``trimmed-mean`` removes."""
    clip_norm: Rate = 1.0
    """Largest norm of one client's update in ``clipped-mean``."""
    split: Split = "left"
    """Factors that get the singular values in ``flexlora``: all into B, or evenly into both."""
    normalize: Normalize = "all"
    """Denominator in ``hetlora`` for rank components that only some clients hold: all clients, or only the holders."""
    residual_rank: RankOrZero | None = None
    """Rank of the residual that ``fedex-lora`` adds to the base in a round, the rest being carried over; the whole
    residual if left out."""
    strength: Penalty = 0.01
    """Regularisation of the correction of B in ``lora-fair``."""
    sparse_scale: Penalty = 2.0
    """Factor of the sparse, client-specific part of the updates in ``fedrpca``; 1 is the mean."""


@dataclass(frozen=True)
class ServerOptimizer(_Checked):
    """How the server steps towards the result of the rule."""

    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = "none"
    """Server optimiser that steps towards the result of the rule: ``none`` takes the result itself, the others are
    FedAvgM, FedAdam and FedYogi. A layer that no client trained is unchanged, whatever its momentum."""
    server_learning_rate: Rate | None = None
    """Learning rate of the server optimiser; if left out 1 for ``momentum`` and 0.001 for ``adam`` and ``yogi``."""
    server_momentum: Share = 0.9
    """Decay of the running mean of updates (beta 1)."""
    server_beta2: Share = 0.99
    """Decay of the running mean of squared updates (beta 2), for ``adam`` and ``yogi``."""
    server_tau: Rate = 1e-3
    """Added to the root of the mean of squares, for ``adam`` and ``yogi``; the larger, the less adaptive."""

    @property
    def learning_rate(self) -> float:
        """The learning rate with its default; with 1 and no momentum yet, the first step is the plain mean."""
        default = 1.0 if self.server_optimizer == "momentum" else 1e-3
        return default if self.server_learning_rate is None else self.server_learning_rate


@dataclass(frozen=True)
class AlignSettings(_Checked):
    """How conflicting updates are aligned before they are averaged; see ``alignment.gradients``."""

    align: Align = "none"
    """Alignment of conflicting updates before they are averaged: none, or a rule of HeteroTune's alignment. Updates are
    then divided by local steps, which is all that ``mean`` does."""
    align_per: AlignPer = "module"
    """Tensors that are aligned together: those of a module, each tensor alone, or all."""
    align_equalise: bool = False
    """First scale all updates to the median norm."""
    align_sharpness: Strength = 1.0
    """The power kappa of the cosine, for ``soft``."""


@dataclass(frozen=True)
class Aggregation(AlignSettings, ServerOptimizer, RuleSettings):  # the last base's keys come first
    """Aggregation of the clients' tensors on the server, in methods that average layer by layer."""

    align_groups: Literal["client", "group"] = "client"
    """Units of alignment: single clients, which keeps all their updates in memory, or the means of [[groups]] that
    train one adapter together."""
