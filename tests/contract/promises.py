"""What every method promises, as plain functions: ``promise(build)`` asserts it of the method that ``build()`` gives.

A new method joins by one row in ``test_contract.py``. ``build`` is called anew for each run whose bits are compared,
so that nothing that another run left behind in a closure can help it.
"""

from __future__ import annotations

import random
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from declared import declared, misfit
from torch import Tensor

from fedquilt.client import Client
from fedquilt.core.errors import RoundError
from fedquilt.core.loop import Send, Traffic, perform, rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Failure, Memory, Order, Profile, Reply, Tree, Turn
from fedquilt.engine.local import LocalEngine


class Setup(NamedTuple):
    """A method among its clients: ``clients[id]`` is what ``work`` is given, ``learned(state)`` what learns."""

    method: Method
    profiles: tuple[Profile, ...]
    clients: Mapping[ClientId, Any]
    learned: Callable[[Tree], Tree] = lambda state: state

    def bound(self) -> Setup:
        """The same, whose clients make a model of an order as the method does; those that wrap one do so already."""
        model = self.method.model
        clients = {k: replace(c, model=model) if isinstance(c, Client) else c for k, c in self.clients.items()}
        return self._replace(clients=clients)


Build = Callable[[], Setup]
Away = Callable[[ClientId, str, int], bool]


class Played(NamedTuple):
    """The state after each round (the first is the initial one), all traffic, and the clients' memories at the end.

    ``kept`` are their memories after each round, as ``states`` are the server's states.
    """

    states: list[Tree]
    traffic: list[tuple[Traffic, ...]]
    memories: dict[ClientId, Memory]
    kept: list[dict[ClientId, Memory]]

    @property
    def end(self) -> Tree:
        return {"state": self.states[-1], "memories": {str(k): m for k, m in sorted(self.memories.items())}}


# A tiny engine ------------------------------------------------------------


def sender(clients: Mapping[ClientId, Any], memories: dict[ClientId, Memory], away: Away) -> Send:
    def send(exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        for client, order in orders.items():
            if away(client, exchange.name, order.round):
                yield Failure(client, "is away")
                continue
            memory = memories.get(client, {})
            reply, memories[client] = perform(exchange, clients[client], client, order, memory)
            yield reply

    return send


def nobody(client: ClientId, exchange: str, number: int) -> bool:
    return False


def play(
    setup: Setup,
    *,
    seed: int = 5,
    num_rounds: int = 3,
    start: int = 0,
    state: Tree = None,
    memories: Mapping[ClientId, Memory] | None = None,
    away: Away = nobody,
    cohort: Callable[[int], Collection[Profile]] | None = None,
) -> Played:
    """A whole run on the tiny engine."""
    setup = setup.bound()
    memories = dict(memories or {})
    rng = Rng(seed)
    if state is None:
        state = setup.method.init(rng.child("init"))
    send = sender(setup.clients, memories, away)
    cohorts = cohort or (lambda number: setup.profiles)
    played = Played([state], [], memories, [dict(memories)])
    for done in rounds(setup.method, cohorts, send, rng, num_rounds=num_rounds, state=state, start=start):
        played.states.append(done.state)
        played.traffic.append(done.traffic)
        played.kept.append(dict(memories))
    return played


# Trees ------------------------------------------------------------


def fault(tree: Any, where: str) -> str | None:
    """Why ``tree`` cannot be kept as tensors and JSON, or None if it can."""
    if isinstance(tree, Tensor):
        return f"{where} carries a gradient graph" if tree.requires_grad else None
    if type(tree) is dict:
        odd = [key for key in tree if type(key) is not str]
        inside = (fault(value, f"{where}.{key}") for key, value in tree.items())
        return f"{where} has the keys {odd}, not strings" if odd else next((f for f in inside if f), None)
    if type(tree) is list:
        return next((f for f in (fault(v, f"{where}[{i}]") for i, v in enumerate(tree)) if f), None)
    fine = tree is None or type(tree) in (bool, int, float, str)
    return None if fine else f"{where} is a {type(tree).__name__}"


def is_tree(tree: Any) -> bool:
    return fault(tree, "tree") is None


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    inside = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for value in inside for tensor in tensors(value)]


def copied(tree: Any) -> Any:
    """The tree with tensors, dicts and lists of its own."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal to the bit (dict order aside)."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        alike = left.shape == right.shape and left.dtype == right.dtype
        return alike and torch.equal(raw(left), raw(right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


def form(tree: Any) -> Any:
    """The tree with the shapes and dtypes of its tensors in their place, and without the values of its fractions."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, Mapping):
        return {key: form(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [form(value) for value in tree]
    return float if isinstance(tree, float) else tree


NOTHING = torch.empty(0, dtype=torch.uint8)


def raw(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else NOTHING


# The run that nothing disturbs ------------------------------------------------------------


class Watched(NamedTuple):
    """A run, what the calls of ``work`` in it broke, by promise, and how many calls there were."""

    played: Played
    faults: Mapping[str, list[str]]
    calls: int


def undisturbed(build: Build, num_rounds: int = 3) -> Played:
    """What ``play(build(), num_rounds=num_rounds)`` gives, for at most three rounds; the caller's own copy.

    Most promises compare with this run, so it is played once for a row of the table.
    """
    whole = _watched(build).played
    kept = copied(whole.kept[: num_rounds + 1])
    return Played(copied(whole.states[: num_rounds + 1]), whole.traffic[:num_rounds], dict(kept[-1]), kept)


@cache  # a few small tensors for each row
def _watched(build: Build) -> Watched:
    """Three rounds in which all that is promised of ``work`` is looked at, and after which its replies are known."""
    faults: dict[str, list[str]] = defaultdict(list)
    replies, calls = _replies(build), 0

    def watched(exchange: Exchange) -> Exchange:
        def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            nonlocal calls
            calls += 1
            given = [order.params, order.settings, memory, _insides(client)]
            before, asked = copied(given), Asked.of(order, memory)
            reply, after = exchange.work(client, order, memory)
            if not same(given, before):
                faults["work_changes_nothing_it_was_given"].append(f"work of '{exchange.name}' changed it")
            faults["state_and_memory_are_trees"] += _no_trees(client, order, reply, after)
            faults["the_private_part_stays_home"] += _leaked(memory, reply, after)
            replies[exchange.name, client.id].append((asked, _own(reply, after)))
            return reply, after

        return exchange._replace(work=work)

    before = seeded(1)
    played = play(_with(build(), watched), num_rounds=3)
    faults["same_seed_same_bits"] += touched(before)
    return Watched(played, faults, calls)


def seeded(seed: int) -> tuple[Any, ...]:
    """The states of the global generators, which have been given this seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def touched(before: tuple[Any, ...]) -> list[str]:
    """Which of the global generators are no longer as ``seeded`` left them."""
    untouched = {
        "torch": torch.equal(before[0], torch.get_rng_state()),
        "numpy": np.array_equal(before[1], np.random.get_state()[1]),
        "Python": before[2] == random.getstate(),
    }
    return [f"{name}'s global generator was touched" for name, well in untouched.items() if not well]


def _insides(client: Any) -> dict[str, Any]:
    return {name: value for name, value in getattr(client, "__dict__", {}).items() if tensors(value)}


def _no_trees(client: Any, order: Order, reply: Reply, after: Memory) -> list[str]:
    found = [
        fault(order.params, "order.params"),
        fault(dict(order.settings), "order.settings"),
        fault(reply.params, "reply.params"),
        fault(dict(reply.metrics), "reply.metrics"),
        fault(after, "memory"),
        None if reply.client == client.id else f"client {client.id} answers as {reply.client}",
    ]
    odd = [n for n, value in [*order.params.items(), *reply.params.items()] if not isinstance(value, Tensor)]
    return [one for one in found if one] + [f"'{name}' travels and is no tensor" for name in odd]


def _leaked(memory: Memory, reply: Reply, after: Memory) -> list[str]:
    private = {**memory.get("params", {}), **after.get("params", {})}
    found = [f"the name of the private '{name}' is in the reply" for name in private.keys() & reply.params.keys()]
    for name, own in [*memory.get("params", {}).items(), *after.get("params", {}).items()]:
        for sent in reply.params.values():
            stored = own.untyped_storage().data_ptr() == sent.untyped_storage().data_ptr() and bool(own.numel())
            if stored or (same(own, sent) and bool(own.any())):
                found.append(f"the private '{name}' is in the reply")
    return found


# Work that is not done twice ------------------------------------------------------------


class Asked(NamedTuple):
    """What a call of ``work`` depends on besides its client."""

    round: int
    rng: Rng
    settings: Tree
    memory: Tree
    params: Tree

    @classmethod
    def of(cls, order: Order, memory: Memory) -> Asked:
        return cls(order.round, order.rng, copied(order.settings), copied(memory), copied(order.params))

    def is_by(self, order: Order, memory: Memory) -> bool:
        return self.rng == order.rng and same(
            [self.round, self.settings, self.memory, self.params], [order.round, order.settings, memory, order.params]
        )

    def is_like(self, order: Order, memory: Memory) -> bool:
        """Whether the same is asked in the same round, of tensors of the same names and shapes with other numbers."""
        return (self.round, form([self.settings, self.memory, self.params])) == (
            order.round,
            form([order.settings, memory, order.params]),
        )


@lru_cache(maxsize=4)  # the promises of a row follow one another
def _replies(build: Build) -> dict[tuple[str, ClientId], list[tuple[Asked, tuple[Reply, Memory]]]]:
    return defaultdict(list)


def _own(reply: Reply, memory: Memory) -> tuple[Reply, Memory]:
    return replace(reply, params=copied(reply.params), metrics=dict(reply.metrics)), copied(memory)


def recalled(build: Build, *, likewise: bool = False) -> Setup:
    """The row's method and clients; a client asked to the bit what it was asked before answers as it did, untrained.

    ``work`` depends on its client, order and memory alone: ``same_seed_same_bits`` and ``resumes_to_the_bit`` hold it
    to that, and train. A promise about the server, the loop or an engine trains only where its orders are new, and
    ``likewise`` only where they have another form: what a server does with replies is seen from any that it could get.
    """
    _watched(build)
    replies = _replies(build)

    def remembering(exchange: Exchange) -> Exchange:
        def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            known = replies[exchange.name, client.id]
            for asks in (Asked.is_by, Asked.is_like) if likewise else (Asked.is_by,):
                for asked, answer in known:
                    if asks(asked, order, memory):
                        return _own(*answer)
            asked = Asked.of(order, memory)
            reply, after = exchange.work(client, order, memory)
            known.append((asked, _own(reply, after)))
            return reply, after

        return exchange._replace(work=work)

    return _with(_made(build), remembering)


@lru_cache(maxsize=4)
def _made(build: Build) -> Setup:
    """A method and clients for all promises of a row that do not ask what a run leaves behind in a method's closures.

    ``resumes_to_the_bit`` does: it goes on with another method from what the first one gave.
    """
    return build()


def _with(setup: Setup, change: Callable[[Exchange], Exchange]) -> Setup:
    exchanges = tuple(change(exchange) for exchange in setup.method.exchanges)
    return setup._replace(method=setup.method._replace(exchanges=exchanges))


# Promises ------------------------------------------------------------


def survives_one_client_missing(build: Build) -> None:
    """Any one client may be away, always or in one exchange; the round goes on without it, and says so."""
    names = [exchange.name for exchange in _made(build).method.exchanges]
    before = undisturbed(build, 1)
    asked_at_all = sorted(
        {client for traffic in undisturbed(build).traffic for moved in traffic for client in moved.settings}
    )
    assert len(asked_at_all) >= 2
    # an exchange may ask nobody in later rounds, such as the one that finds common coordinates
    later = {moved.exchange for moved in undisturbed(build, 2).traffic[-1] if moved.settings}
    names = [name for name in names if name in later]
    assert names
    for missing in asked_at_all:
        setup = recalled(build, likewise=True)
        for name in [None, *names]:

            def away(client: ClientId, exchange: str, number: int, missing=missing, name=name) -> bool:
                return client == missing and (name is None or (name == exchange and number == 1))

            asked = 0
            if name is None:
                played = play(setup, num_rounds=2, away=away)
            else:  # on from round 0, in which all were there
                state, memories = copied(before.states[-1]), copied(before.memories)
                played = play(setup, num_rounds=2, start=1, state=state, memories=memories, away=away)
            for number, traffic in enumerate(played.traffic, start=2 - len(played.traffic)):
                for moved in traffic:
                    gone = missing in moved.settings and away(missing, moved.exchange, number)
                    assert moved.dropped == ({missing: "is away"} if gone else {})
                    assert missing not in moved.bytes_up or not gone
                    asked += gone
            assert asked, f"client {missing} was never asked in exchange {name}"
            assert all(bool(torch.isfinite(t).all()) for t in tensors(played.end) if t.is_floating_point())


def refuses_an_empty_cohort(build: Build) -> None:
    setup = _made(build)
    state = setup.method.init(Rng(5).child("init"))
    before = copied(state)
    with pytest.raises(RoundError, match="round 1: the cohort is empty"):
        play(setup, state=state, cohort=lambda number: ())
    assert same(state, before)


def refuses_a_round_without_replies(build: Build) -> None:
    """If nobody answers, the error names the round, the exchange, every client asked and why; the state stays."""
    setup = _made(build)
    played = undisturbed(build, 1)
    state, before = played.states[-1], copied(played.states[-1])
    turn = Turn(1, setup.profiles, Rng(5).child("round", 1))
    orders = ((exchange, exchange.ask(state, turn)) for exchange in setup.method.exchanges)
    exchange, asked = next((exchange, sorted(found)) for exchange, found in orders if found)
    with pytest.raises(RoundError) as caught:
        play(setup, state=state, memories=played.memories, start=1, away=lambda *call: True)
    assert f"round 2, exchange '{exchange.name}': 0 of {len(asked)} clients" in str(caught.value)
    assert all(f"client {client}: is away" in str(caught.value) for client in asked)
    assert same(state, before)


def echo_changes_nothing(build: Build) -> None:
    """Clients that return what they received leave the state unchanged to the bit."""
    setup = _made(build)
    rows = {profile.id: profile.num_examples for profile in setup.profiles}

    def echo(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, order.params, rows[client.id]), memory

    echoing = tuple(exchange._replace(work=echo) for exchange in setup.method.exchanges)
    played = play(setup._replace(method=setup.method._replace(exchanges=echoing)))
    first = setup.learned(played.states[0])
    assert tensors(first)
    assert all(same(setup.learned(state), first) for state in played.states[1:])


def ask_and_view_read_only(build: Build) -> None:
    def watched(exchange: Exchange) -> Exchange:
        def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
            before = copied(state)
            orders = exchange.ask(state, turn)
            assert same(state, before), f"ask of '{exchange.name}' changed the state"
            assert orders.keys() <= {profile.id for profile in turn.cohort}, "ask went beyond the cohort"
            return orders

        return exchange._replace(ask=ask)

    setup = recalled(build)
    played = play(_with(setup, watched))
    for state in played.states:
        before = copied(state)
        views = [setup.method.view(state, profile) for profile in setup.profiles]
        assert same(state, before), "view changed the state"
        assert all(is_tree(view.params) and is_tree(copied(view.settings)) for view in views)


def work_changes_nothing_it_was_given(build: Build) -> None:
    """Order, memory and the client's own tensors are the same to the bit after each call."""
    watched = _watched(build)
    assert watched.calls
    assert watched.faults["work_changes_nothing_it_was_given"] == []


def merge_changes_nothing_it_was_given(build: Build) -> None:
    def watched(exchange: Exchange) -> Exchange:
        def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
            kept = list(replies)
            before = copied(state), [copied(reply.params) for reply in kept]
            result = exchange.merge(state, iter(kept))
            assert same(state, before[0]), f"merge of '{exchange.name}' changed the state it was given"
            assert same([reply.params for reply in kept], before[1]), f"merge of '{exchange.name}' changed a reply"
            return result

        return exchange._replace(merge=merge)

    play(_with(recalled(build), watched))


def merge_reads_replies_once(build: Build) -> None:
    class Once:
        """An iterator that fails, instead of being silent, when it is read a second time."""

        def __init__(self, replies: Iterable[Reply]) -> None:
            self.rest, self.spent = iter(replies), False

        def __iter__(self) -> Once:
            return self

        def __next__(self) -> Reply:
            assert not self.spent, "merge reads its replies a second time"
            try:
                return next(self.rest)
            except StopIteration:
                self.spent = True
                raise

    def watched(exchange: Exchange) -> Exchange:
        return exchange._replace(merge=lambda state, replies: exchange.merge(state, Once(list(replies))))

    assert same(play(_with(recalled(build), watched)).end, undisturbed(build).end)


def merge_lets_replies_go(build: Build) -> None:
    """The server never holds every client's tensors: a reply is let go before the reply after next is read."""

    def watched(exchange: Exchange) -> Exchange:
        def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
            return exchange.merge(state, counted(replies))

        return exchange._replace(merge=merge)

    def counted(replies: Iterable[Reply]) -> Iterator[Reply]:
        seen: list[list[weakref.ref[Tensor]]] = []
        for reply in replies:
            # the copy is this test's own, so that nobody but merge can hold it
            reply = replace(reply, params=copied(reply.params))
            seen.append([weakref.ref(tensor) for tensor in reply.params.values()])
            alive = sum(any(ref() is not None for ref in refs) for refs in seen)
            assert alive <= 2, f"merge still holds {alive} replies"
            yield reply
            del reply

    setup = recalled(build)
    assert len(setup.profiles) > 2
    play(_with(setup, watched))


def same_seed_same_bits(build: Build) -> None:
    """Nothing but the seed decides: not the global generators, which stay as they were, nor an earlier run.

    Of the rounds after the second ``resumes_to_the_bit`` tells the same.
    """
    expected, before = undisturbed(build, 2), seeded(2)  # played after ``seeded(1)``
    assert same(play(build(), num_rounds=2).end, expected.end)
    assert _watched(build).faults["same_seed_same_bits"] + touched(before) == []


def cohort_order_does_not_matter(build: Build) -> None:
    setup = recalled(build)
    forward, backward = undisturbed(build), play(setup, cohort=lambda number: setup.profiles[::-1])
    assert same(forward.end, backward.end)


def state_and_memory_are_trees(build: Build) -> None:
    """Tensors, numbers, strings, booleans, None, lists, dicts with string keys; so are orders and replies.

    A state is of the type that ``init`` declares.
    """
    watched = _watched(build)
    hint = declared(_made(build).method.init)
    faults = [fault(state, "state") or misfit(state, hint, "state") for state in watched.played.states]
    assert watched.calls
    assert watched.faults["state_and_memory_are_trees"] + [f for f in faults if f] == []


def resumes_to_the_bit(build: Build) -> None:
    """Two rounds, a copy of state and memories, and the rest in a fresh process end as three rounds do."""
    whole, half = undisturbed(build), undisturbed(build, 2)
    rest = play(
        build(),
        num_rounds=3,
        start=2,
        state=half.states[-1],
        memories=half.memories,
    )
    assert same(rest.end, whole.end)


def a_failed_round_leaves_the_state(build: Build) -> None:
    """A run that dies in its last exchange can be taken up from the state and memories before that round."""
    last = _made(build).method.exchanges[-1].name
    whole, first = undisturbed(build, 2), undisturbed(build, 1)
    setup, state, memories = recalled(build), first.states[-1], first.memories
    before = copied(state)
    with pytest.raises(RoundError, match=f"round 2, exchange '{last}'"):
        play(setup, start=1, state=state, memories=memories, away=lambda client, name, number: name == last)
    assert same(state, before)
    assert same(play(setup, num_rounds=2, start=1, state=state, memories=memories).end, whole.end)


def the_private_part_stays_home(build: Build) -> None:
    """No tensor of ``memory["params"]`` is in a reply: not by name, not by storage, not by value."""
    watched = _watched(build)
    assert watched.calls
    assert watched.faults["the_private_part_stays_home"] == []


def the_local_engine_ends_in_the_same_bits(build: Build) -> None:
    setup = recalled(build)
    engine = LocalEngine(setup.clients)
    *_, last = rounds(setup.method, lambda number: setup.profiles, engine.send, Rng(5), num_rounds=3)
    expected = undisturbed(build)
    assert same(last.state, expected.states[-1])
    kept = {client: memory for client, memory in expected.memories.items() if memory}
    assert same(engine.memories, kept)


PROMISES: dict[str, Callable[[Build], None]] = {
    promise.__name__: promise
    for promise in (
        survives_one_client_missing,
        refuses_an_empty_cohort,
        refuses_a_round_without_replies,
        echo_changes_nothing,
        ask_and_view_read_only,
        work_changes_nothing_it_was_given,
        merge_changes_nothing_it_was_given,
        merge_reads_replies_once,
        merge_lets_replies_go,
        same_seed_same_bits,
        cohort_order_does_not_matter,
        state_and_memory_are_trees,
        resumes_to_the_bit,
        a_failed_round_leaves_the_state,
        the_private_part_stays_home,
        the_local_engine_ends_in_the_same_bits,
    )
}
