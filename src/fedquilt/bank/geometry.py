"""The size of a federation's bank, and of each client's part of it."""

from __future__ import annotations

from fedquilt.adapters.sites import places_in, sites_of
from fedquilt.bank.merge import exchange_bytes
from fedquilt.bank.selection import rank_within
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import at_rank
from fedquilt.core.federation import Federation
from fedquilt.core.types import Layout, Profile


class Geometry:
    """The bank's sites, ``num_slots`` and ``size`` (its matrices are size x size), and every client's part of it.

    Unless ``slots`` is given, there are as many slots as the deepest client has layers. The size is that of the largest
    core of a client: its rank, or a lower one if messages would exceed ``max_bytes``.

    Raises
    ------
    ModelError
        if an adapted module belongs to none of the sites that are common to models.
    ConfigError
        if the adapters of one client differ in rank, or ``max_bytes`` is too small for rank 1.
    """

    def __init__(self, federation: Federation, slots: int | None = None, max_bytes: int | None = None) -> None:
        self.layouts = federation.layouts
        self.profiles = {profile.id: profile for profile in federation.profiles}
        self._max_bytes = max_bytes
        self._sites = {name: tuple(sites_of(places_in(layout))) for name, layout in self.layouts.items()}
        self.every_site = tuple(dict.fromkeys(site for own in self._sites.values() for site in own))
        self.num_slots = slots or max(layout.num_layers for layout in self.layouts.values())
        self.size = max(self.width(profile) for profile in federation.profiles)

    def layout(self, profile: Profile) -> Layout:
        """The client's layout."""
        return self.layouts[profile.architecture]

    def sites(self, profile: Profile) -> tuple[str, ...]:
        """The sites at which the client has adapters."""
        return self._sites[profile.architecture]

    def rank(self, profile: Profile) -> int:
        """The common rank of the client's adapters."""
        return rank_of(self.layout(profile), profile.budget.rank)

    def width(self, profile: Profile) -> int:
        """The number of rows and columns of the bank's matrices that the client works with."""
        if self._max_bytes is None:
            return self.rank(profile)
        num_matrices = self.num_slots * len(self.sites(profile))
        extra = exchange_bytes(self.num_slots, 0, 0)
        return rank_within(self._max_bytes, num_matrices, self.rank(profile), extra_bytes=extra)

    def trained_layers(self, profile: Profile) -> list[int]:
        """The layers that the client trains: the last ones, as many as its budget allows."""
        depth = self.layout(profile).num_layers
        return list(range(depth - min(depth, profile.budget.layers), depth))

    def refuse_deep(self, setting: str) -> None:
        """Raise ConfigError, about ``setting``, if a client has more layers than the bank has slots."""
        deepest = max(self.layouts.values(), key=lambda layout: layout.num_layers)
        if deepest.num_layers > self.num_slots:
            raise ConfigError(
                f"{setting}: {deepest.architecture} has {deepest.num_layers} layers and the bank {self.num_slots} "
                "slots; leave method.slots out, or take 'slots' or 'learned'"
            )


def rank_of(layout: Layout, rank: int | None) -> int:
    """The common rank of the adapters of a client with this rank; None is that of the layout.

    Raises
    ------
    ConfigError
        if its modules differ in rank.
    """
    shapes = at_rank(layout, rank).shapes
    ranks = sorted({shape[0] for name, shape in shapes.items() if name.endswith(".lora_A")})
    if len(ranks) > 1:
        raise ConfigError(
            f"adapter.rank_pattern: {layout.architecture} has adapters of the ranks {', '.join(map(str, ranks))}, and "
            "a client's cores need one for all of its modules; leave rank_pattern out"
        )
    return ranks[0]
