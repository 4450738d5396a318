"""Clients that are made when they are asked for, so that those who sit out a round cost it nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from fedquilt.client.client import Client
from fedquilt.core.types import ClientId


class OnDemand(Mapping[ClientId, Client]):
    """Clients by number; each is made anew whenever it is looked up, and is the same in every value.

    Parameters
    ----------
    ids
        The clients' numbers, in a collection that finds one quickly: a range or a dictionary.
    make
        Makes the client with a number.
    """

    def __init__(self, ids: Collection[ClientId], make: Callable[[ClientId], Client]) -> None:
        self._ids, self._make = ids, make

    def __getitem__(self, client: ClientId) -> Client:
        if client not in self._ids:
            raise KeyError(client)
        return self._make(client)

    def __contains__(self, client: object) -> bool:
        return client in self._ids

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def changed(clients: Mapping[ClientId, Client], change: Callable[[Client], Client]) -> Mapping[ClientId, Client]:
    """The clients with a change, which is made when one is looked up."""
    return OnDemand(clients.keys(), lambda client: change(clients[client]))


def together(parts: Sequence[Mapping[ClientId, Client]]) -> Mapping[ClientId, Client]:
    """The clients of several mappings, none of which is in two."""
    if len(parts) == 1:
        return parts[0]
    owner = {client: part for part in parts for client in part}
    return OnDemand(owner, lambda client: owner[client][client])
