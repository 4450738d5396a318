"""The section of a run file on how the server makes one set of tensors of the clients' ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedquilt.config.value_types import STRICT, RankOrZero, Rate, Share, Strength


class Aggregation(BaseModel):
    """How the server makes one set of tensors of the clients' ones, in methods that average layer by layer."""

    model_config = STRICT

    rule: Literal[
        "mean",
        "median",
        "trimmed-mean",
        "clipped-mean",
        "flexlora",
        "hetlora",
        "flora",
        "fedex-lora",
        "lora-fair",
    ] = "mean"
    """``median``, ``trimmed-mean`` and ``clipped-mean`` bound what a few wrong clients can do; median and trimmed mean
    count every client once. The others combine adapters as the method of their name does, with this method's choice of
    layers; the head is averaged."""
    trim_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the smallest and of the largest values that ``trimmed-mean`` cuts off."""
    clip_norm: Rate = 1.0
    """Largest norm of one client's update in ``clipped-mean``."""
    split: Literal["left", "even"] = "left"
    """Where ``flexlora`` puts the singular values: all into B, or evenly into both factors."""
    normalize: Literal["all", "segment"] = "all"
    """Over whom ``hetlora`` takes the mean of the ranks that not all clients hold: all, or those that hold them."""
    residual_rank: RankOrZero | None = None
    """Rank of what ``fedex-lora`` adds to the base in a round, the rest being carried over; all if left out."""
    strength: Strength = 0.01
    """How small ``lora-fair`` holds its correction of B."""
    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = "none"
    """How the server moves towards what the rule gives: all the way (``none``), or by a step of FedAvgM, FedAdam or
    FedYogi. A layer that nobody trained stays as it is, whatever its momentum."""
    server_learning_rate: Rate | None = None
    """Of the server optimiser; if left out 1 for ``momentum`` and 0.001 for ``adam`` and ``yogi``."""
    server_momentum: Share = 0.9
    """Share of the running mean of moves that is kept in a round (beta 1)."""
    server_beta2: Share = 0.99
    """Share of the running mean of squares that is kept in a round, for ``adam`` and ``yogi``."""
    server_tau: Rate = 1e-3
    """Added to the root of the mean of squares, for ``adam`` and ``yogi``; the larger, the less adaptive."""
    align: Literal["none", "mean", "projection", "reference", "soft"] = "none"
    """What is done about clients that pull the adapters in opposing directions, before their mean is taken: nothing, or
    a rule of HeteroTune's alignment. Updates are then divided by local steps, which is all that ``mean`` does."""
    align_groups: Literal["client", "group"] = "client"
    """Who is aligned with whom: every client with every other, which keeps all their updates in memory, or the means of
    [[groups]] that train one adapter together."""
    align_per: Literal["module", "tensor", "global"] = "module"
    """What is aligned on its own: the tensors of a module, each tensor, or all together."""
    align_equalise: bool = False
    """Give all updates the median length first."""
    align_sharpness: Strength = 1.0
    """The power kappa of the cosine, for ``soft``."""
