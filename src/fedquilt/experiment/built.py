"""An experiment: everything that a run, a plan or an export needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fedquilt.client.client import Client
from fedquilt.config.schema import Config
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Layout
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.inputs_record import announced_record
from fedquilt.experiment.on_demand import changed
from fedquilt.methods.traits import Traits
from fedquilt.models.loaded import Loaded


@dataclass(frozen=True)
class Experiment:
    """Everything that a run, a plan or an export needs.

    Attributes
    ----------
    config : the run file.
    federation : what the method knows about the federation.
    make_method : makes the method for a federation.
    method : the method for this federation.
    traits : the traits of the method.
    clients : the clients whose rows are on this machine.
    groups : the groups of the federation, one without ``[[groups]]``; each holds the model of its clients and the
        server's own client for it.
    owner : the server that owns a model and data, as a group without clients; None without ``[server]``.
    partition : the record of who has which rows, as the run folder keeps it.
    """

    config: Config
    federation: Federation
    make_method: Callable[[Federation], Method]
    method: Method
    traits: Traits
    clients: Mapping[ClientId, Client]
    groups: tuple[BuiltGroup, ...]
    owner: BuiltGroup | None
    partition: dict[str, Any]

    @property
    def models(self) -> tuple[BuiltGroup, ...]:
        """The groups, and behind them the server if it owns a model."""
        return self.groups if self.owner is None else (*self.groups, self.owner)

    @property
    def only(self) -> BuiltGroup:
        """The one group.

        Raises
        ------
        ValueError
            if the federation has several.
        """
        (group,) = self.groups
        return group

    @property
    def server(self) -> Client:
        """The server's own client of the only group; its training rows are the proxy set."""
        return self.only.server

    @property
    def loaded(self) -> Loaded:
        return self.only.loaded

    @property
    def layout(self) -> Layout:
        return self.only.layout

    def group_of(self, client: ClientId) -> BuiltGroup:
        """The group that a client is in."""
        return next(group for group in self.groups if client in group.ids)

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed)

    def announced(self, examples: Mapping[ClientId, int]) -> Experiment:
        """The experiment with the numbers of training rows that clients announced; 0 for clients that did not."""
        if not examples:
            return self
        profiles = tuple(
            replace(profile, num_examples=examples.get(profile.id, 0)) for profile in self.federation.profiles
        )
        federation = replace(self.federation, profiles=profiles)
        made = replace(self, federation=federation, method=self.make_method(federation))
        return replace(made.modelled(), partition=announced_record(profiles))

    def modelled(self) -> Experiment:
        """The experiment with the method's ``model`` set in all clients and in the server's own ones.

        Clients also know which texts may leave them.
        """
        model, owned = self.method.model, self.config.server
        share = "public" if owned is None else owned.share
        clients = changed(self.clients, partial(replace, model=model, share=share))
        groups = tuple(replace(group, server=replace(group.server, model=model)) for group in self.groups)
        return replace(self, clients=clients, groups=groups)
