"""The sections of a run file on aggregation, on wrong clients and on privacy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from fedquilt.config.value_types import STRICT, Count, RankOrZero, Rate, Seed, Share, Strength


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


class Defence(BaseModel):
    """When a reply is dropped or bounded, and when a round has too few of them.

    Names, shapes, types, and that all numbers are finite and within what they mean, are always checked.
    """

    model_config = STRICT

    max_update_norm: Rate | None = None
    """Largest norm of one client's update, over all its tensors; not bounded if left out."""
    max_norm_ratio: Annotated[float, Field(ge=1, le=1e6)] | Literal["off"] = 10.0
    """How many times as long as the median of its exchange one client's update may be (root mean square over its
    numbers); longer ones are scaled down to that. The replies of an exchange are then held until the last is there;
    ``off`` merges each as it comes. Not used with ``privacy.mode = "central"``, which clips by itself."""
    max_weight_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share that one client has of the weights of those who send a tensor; heavier ones weigh less, and where
    they are too few for any share, all weigh alike. If left out 0.5 with ``partition.scheme = "sites"``, where each
    says itself how many rows it has, and 1, which is no bound, elsewhere."""
    max_reply_bytes: Count | None = None
    """Largest size of one client's tensors; only what was asked for is taken in any case."""
    min_cohort: Count = 1
    """Usable replies that a round needs, beside ``quorum``."""


class Privacy(BaseModel):
    """Differential privacy of whole clients; needs the extra ``fedquilt[privacy]``."""

    model_config = STRICT

    mode: Literal["none", "central", "local"] = "none"
    """``central``: the server clips updates and adds noise to their sum. ``local``: each client clips and adds noise
    before anything leaves it."""
    clip_norm: Rate = 1.0
    """Largest norm of one client's update, over all its tensors; longer ones are scaled down to it."""
    noise_multiplier: Strength = 1.0
    """Standard deviation of the noise as a multiple of ``clip_norm``."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta at which epsilon is given; choose it well below one in the number of clients."""
    client_epsilon: Rate | None = None
    """With ``local``: what a client gives away in all, at ``delta``, before it refuses; what all rounds of the run cost
    if left out. Between real sites each site's own ``epsilon`` stands in its place, and once fixed no run file changes
    it."""
    secure_aggregation: bool = False
    """Not available; see the guide on defence and privacy."""
    test_key: Seed | None = None
    """Makes the noise reproducible, and worthless against whoever knows the key; for tests."""

    @field_validator("secure_aggregation")
    @classmethod
    def _is_not_to_be_had(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError(
                "not available: Flower has secure aggregation for its legacy interface only, and it hides each reply "
                "from the checks of [defence]; leave it out, or set privacy.mode = 'local' so that no reply shows the "
                "server a client's own update"
            )
        return wanted
