"""Replies that are well formed and mean harm, for every exchange of every method, and what a run of them ends in.

Nothing is trained: what an exchange expects of a reply says what one looks like. The loop, its checks and its bounds
are those of a real run. Used by the contract's tests and by ``bench/merge_fuzz.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from promises import Build, Setup
from torch import Tensor

from fedquilt.core.checks import MAX_GROWTH, MIN_WEIGHT, reply_check
from fedquilt.core.defence import Defence
from fedquilt.core.held import keeping, with_held
from fedquilt.core.loop import Round, perform, rounds
from fedquilt.core.method import Exchange
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Failure, Order, Params, Range, Reply
from fedquilt.core.wire import packed, raised

Shape = Callable[[Tensor, Rng], Tensor]


def _drawn(like: Tensor, rng: Rng) -> Tensor:
    return torch.randn(like.shape, generator=rng.torch(), dtype=torch.float64)


def _spike(base: Tensor, rng: Rng) -> Tensor:
    made = base.double().clone().flatten()
    if made.numel():
        made[rng.integer() % made.numel()] = MAX_GROWTH
    return made.view(base.shape)


def _scaled(base: Tensor, rng: Rng) -> Tensor:
    return _drawn(base, rng) * 10.0 ** float(rng.child("power").numpy().uniform(-44, 6))


def _one_rank(base: Tensor, rng: Rng) -> Tensor:
    return torch.ones(base.shape, dtype=torch.float64) * (-1.0) ** (rng.integer() % 2) * MAX_GROWTH


SHAPES: dict[str, Shape] = {
    "honest": lambda base, rng: base.double() + 0.01 * _drawn(base, rng),
    "echo": lambda base, rng: base.double(),
    "zeros": lambda base, rng: torch.zeros(base.shape, dtype=torch.float64),
    "minus zeros": lambda base, rng: torch.full(base.shape, -0.0, dtype=torch.float64),
    "subnormal": lambda base, rng: 1e-45 * _drawn(base, rng).sign(),
    "least": lambda base, rng: torch.full(base.shape, float(torch.finfo(torch.float32).tiny), dtype=torch.float64),
    "opposite": lambda base, rng: -base.double(),
    "far": lambda base, rng: MAX_GROWTH * _drawn(base, rng).clamp(-1, 1),
    "one rank": _one_rank,
    "spike": _spike,
    "any size": _scaled,
    "beyond": lambda base, rng: 1e20 * _drawn(base, rng),
    "largest": lambda base, rng: torch.full(base.shape, 3e38, dtype=torch.float64),
}
WEIGHTS: dict[str, Callable[[int], Any]] = {
    "all": lambda examples: examples,
    "least": lambda examples: MIN_WEIGHT,
    "half": lambda examples: examples / 2,
    "too many": lambda examples: examples + 1,
    "subnormal": lambda examples: 5e-324,
    "endless": lambda examples: 10**400,
    "none": lambda examples: math.nan,
}


def hostile(exchange: Exchange, order: Order, template: Reply, examples: int, rng: Rng) -> Reply:
    """A reply to this order, in shape and dtype as ``template``, of numbers that are chosen to do harm."""
    pick = rng.child("pick").numpy()
    kinds = list(SHAPES)
    common = kinds[pick.integers(len(kinds))]
    params: Params = {}
    for name, base in template.params.items():
        kind = common if pick.random() < 0.7 else kinds[pick.integers(len(kinds))]
        made = SHAPES[kind](base, rng.child(name)) if base.is_floating_point() else base
        params[name] = made.to(base.dtype)
    weights = list(WEIGHTS)
    # most weights are good ones: a reply that is refused reaches no merge
    weight = WEIGHTS[weights[pick.integers(3) if pick.random() < 0.95 else pick.integers(len(weights))]](examples)
    wanted = {} if exchange.metrics is None else exchange.metrics(order)
    metrics = {name: _within(one, pick) for name, one in wanted.items() if pick.random() < 0.95}
    if exchange.metrics is not None:
        metrics |= {"score_0": 1e308, "score_1": -1.0, "received_loss": 7.0, "rank": -3, "unheard of": 1e300}
        metrics |= {name: _within(one, pick) for name, one in wanted.items() if name in metrics}
        if wanted and pick.random() < 0.03:
            metrics[next(iter(wanted))] = [math.nan, 1e308, -1e308, 10**400, True][pick.integers(5)]
    return Reply(template.client, params, weight, metrics, order.round)


def _within(range: Range, pick: Any) -> float:
    choices = [range.low, range.high, -0.0 if range.low == 0 else range.low]
    if not range.whole:
        choices += [range.low + 1e-300, (range.low + range.high) / 2]
    return float(choices[pick.integers(len(choices))])


def honest(template: Reply, examples: int, rng: Rng) -> Reply:
    """A reply whose update is small and drawn; the metrics that a client might tell."""
    params = {
        name: SHAPES["honest"](base, rng.child(name)).to(base.dtype) if base.is_floating_point() else base
        for name, base in template.params.items()
    }
    return replace(template, params=params, weight=float(examples))


def _in_range(reply: Reply, exchange: Exchange, order: Order) -> Reply:
    """The reply with plain values in the ranges that its exchange declares."""
    ranges = {} if exchange.ranges is None else exchange.ranges(order)
    within = {
        # a little inside: an end of the range may lie outside of it once it is a float32
        name: tensor.clamp(*((1 - 1e-6) * end for end in ranges[name][:2]))
        for name, tensor in reply.params.items()
        if name in ranges and tensor.is_floating_point()
    }
    return replace(reply, params={**reply.params, **within})


DEFAULT = Defence(max_weight_share=0.5)


class Attack:
    """Gives ``send``: clients of ``bad`` answer by ``hostile``, all others by ``honest``; ``counts`` what happened."""

    def __init__(self, setup: Setup, bad: Callable[[ClientId, int], bool], rng: Rng) -> None:
        self.setup, self.bad, self.rng = setup, bad, rng
        self.examples = {profile.id: profile.num_examples for profile in setup.profiles}
        self.counts: Counter[str] = Counter()
        self.sent: dict[ClientId, Reply] = {}
        self.memories: dict[ClientId, Any] = {}
        self.held: dict[ClientId, Any] = {}  # what clients keep of their orders within a round

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]):
        self.sent = {}
        round = next(iter(orders.values())).round
        good = [client for client in orders if not self.bad(client, round)] or [min(orders)]  # a round needs a reply
        for client, sent in orders.items():
            order = with_held(sent, self.held.get(client, {}))
            self.held |= {client: keeping({}, order)} if exchange.keeps else {}
            full = order if exchange.wire is None else raised(order, exchange.wire)
            template = self._template(exchange, client, order, full)
            if isinstance(template, Failure):
                yield template
                continue
            rng = self.rng.child(order.round, client, exchange.name)
            if client not in good:
                self.counts["hostile"] += 1
                reply = hostile(exchange, full, template, self.examples[client], rng)
            else:
                reply = _in_range(honest(template, self.examples[client], rng), exchange, full)
            self.sent[client] = reply
            if exchange.wire is not None:
                reply, _ = packed(full, reply, {}, exchange.wire)
            yield reply

    def _template(self, exchange: Exchange, client: ClientId, order: Order, full: Order) -> Reply | Failure:
        if exchange.expects is not None:
            return Reply(client, exchange.expects(full), 1.0, {}, order.round)
        held = self.setup.clients[client], client, full, self.memories.get(client, {})
        reply, self.memories[client] = perform(exchange._replace(wire=None), *held)
        return reply

    def run(self, num_rounds: int, bounds: Defence = DEFAULT, **more: Any) -> list[Round]:
        """The rounds; a merge that raises, or makes a number that is not finite, is an error here too."""
        done = list(
            rounds(
                self.setup.method,
                lambda number: self.setup.profiles,
                self.send,
                self.rng.child("run"),
                num_rounds=num_rounds,
                check=reply_check(self.setup.profiles),
                bounds=bounds,
                **more,
            )
        )
        for moved in (moved for one in done for moved in one.traffic):
            self.counts["dropped"] += len(moved.dropped)
            self.counts["bounded"] += len(moved.bounded)
            self.counts["taken"] += len(moved.bytes_up)
            self.counts["merges"] += bool(moved.bytes_up)
        return done


def attacked(build: Build, seeds: range, *, num_rounds: int = 3, bounds: Defence = DEFAULT) -> Counter[str]:
    """What came of attacking a method from these seeds; each time all clients but one, drawn anew, mean harm."""
    setup, counts = build(), Counter[str]()
    ids = [profile.id for profile in setup.profiles]
    for seed in seeds:
        rng = Rng(seed).child("attack")
        good = {number: ids[rng.child("good", number).integer() % len(ids)] for number in range(num_rounds)}
        attack = Attack(setup, lambda client, number, good=good: client != good[number], rng)
        ended = attack.run(num_rounds, bounds)
        counts += attack.counts
        for profile in setup.profiles:
            view = setup.method.view(ended[-1].state, profile)
            assert all(bool(torch.isfinite(t).all()) for t in view.params.values() if t.is_floating_point())
    return counts
