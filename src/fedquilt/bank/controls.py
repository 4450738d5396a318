"""Control experiments for methods that share a bank: the same training without information from other clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from fedquilt.bank.merge import COVERAGE, as_large
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, ModelState, Order, Params, Profile, Reply, Turn


class NoisyState(ModelState):
    """The state of a server that keeps a bank, ``params``, and the random matrices that it sends instead of it."""

    noise: Params


def with_noise(method: Method, profiles: Iterable[Profile], drawn: Callable[[Rng], Params]) -> Method:
    """The method whose clients are sent random matrices with the Frobenius norms of the bank instead of the bank.

    ``drawn(rng)`` draws them, once, in the shapes of ``state["params"]``, which is the bank. A client's change relative
    to the random matrices is merged as a change of the bank. Clients that gain as much from noise as from the bank
    learned nothing from each other.
    """
    by_client = {profile.id: profile for profile in profiles}

    def init(rng: Rng) -> NoisyState:
        state: ModelState = method.init(rng)
        return {**state, "noise": drawn(rng.child("noise"))}

    def hidden(state: NoisyState) -> NoisyState:
        return {**state, "params": as_large(state["noise"], state["params"])}

    def view(state: NoisyState, profile: Profile) -> Order:
        return method.view(hidden(state), profile)

    def noisy(exchange: Exchange) -> Exchange:
        def ask(state: NoisyState, turn: Turn) -> Mapping[ClientId, Order]:
            return exchange.ask(hidden(state), turn)

        def merge(state: NoisyState, replies: Iterable[Reply]) -> NoisyState:
            sent = hidden(state)

            def on_the_bank() -> Iterator[Reply]:
                for reply in replies:
                    profile = by_client[reply.client]
                    noise, bank = method.view(sent, profile).params, method.view(state, profile).params
                    slots = {name: slot for name, slot in reply.params.items() if name in noise and name != COVERAGE}
                    moved = {name: bank[name] + (slot - noise[name]) for name, slot in slots.items()}
                    yield replace(reply, params={**reply.params, **moved})

            merged: NoisyState = exchange.merge(state, on_the_bank())
            return merged

        return exchange._replace(ask=ask, merge=merge)

    exchanges = tuple(noisy(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, view=view)
