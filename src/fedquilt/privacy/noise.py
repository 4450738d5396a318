"""Clipping and noise around any method: functions Method -> Method.

Both wrappers remove metrics and numbers of examples from replies, and closing exchanges with their scores, because
these reveal something about the client's rows. Apply them outermost, so that tensors that stay with the clients
(``core.wrap.with_local``) have already been taken out of the reply.

The noise is drawn as 64-bit floating-point numbers from an ordinary generator with a seed of 128 bits; it is not
hardened against attacks on floating-point arithmetic or on the generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedquilt.aggregate.robust import clipped_step
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.method import Exchange, Method, Release
from fedquilt.core.params import moved
from fedquilt.core.rng import Rng, secret
from fedquilt.core.types import ClientId, Memory, ModelState, Order, Params, Range, Reply
from fedquilt.core.worker import Worker

ALL: ClientId = -1
"""The client number of the one reply that represents the whole cohort."""


class CountedState(ModelState):
    """The state under central DP, besides the method's own: the number of releases so far."""

    releases: int


def with_central_dp(
    method: Method, *, clip_norm: float, noise_multiplier: float, test_key: int | None = None
) -> Method:
    """Wrap a method so that its ``merge`` sees the clients' updates only as one noisy mean (central DP).

    The mean is ``(sum_k clip(u_k) + N(0, (z C)^2)) / m``, with C = ``clip_norm`` for the norm over all tensors that a
    client sent, z = ``noise_multiplier`` and m, for each tensor, the number of clients that sent it; clients are not
    weighted. The method's own ``merge`` receives this mean as if one client had sent it, so everything after it is
    post-processing. When the data of one client are replaced, the sum changes by at most ``2 C``.

    The state must hold ``params``, the tensors that clients update, and gets a counter of releases. The noise is drawn
    from the operating system's entropy, or, with ``test_key``, from the key and the counter.

    Raises
    ------
    ConfigError
        if the method has several exchanges; and from ``init``, if the state holds no ``params``.

    Paper: dp-fedavg, noise
    """
    if len(method.exchanges) != 1:
        names = "', '".join(exchange.name for exchange in method.exchanges)
        raise ConfigError(
            f"privacy.mode = 'central': method '{method.name}' has {len(method.exchanges)} exchanges in a round "
            f"('{names}'), and only a method with one has a known cost: what the server sends on between them is not "
            "covered; set privacy.mode = 'local' or 'none'"
        )

    def init(rng: Rng) -> CountedState:
        state: ModelState = method.init(rng)
        if not isinstance(state, Mapping) or "params" not in state:
            raise ConfigError(
                f"privacy.mode = 'central': the server of method '{method.name}' keeps no common tensors whose "
                "updates could be clipped; set privacy.mode = 'local' or 'none'"
            )
        return {**state, "releases": 0}

    def noisy(exchange: Exchange) -> Exchange:
        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            reply, memory = exchange.work(client, order, memory)
            return _bare(reply), memory

        def merge(state: CountedState, replies: Iterable[Reply]) -> CountedState:
            stream = secret() if test_key is None else Rng(test_key, ("central", exchange.name, state["releases"]))
            mean = _noisy_mean(state["params"], replies, clip_norm, noise_multiplier, stream)
            merged: CountedState = exchange.merge(state, iter([Reply(ALL, mean, 1.0)]))
            return {**merged, "releases": state["releases"] + 1}

        return exchange._replace(work=work, merge=merge, metrics=_no_metrics)

    def report(state: CountedState) -> dict[str, Any]:
        return {**method.report(state), "releases": state["releases"]}

    exchanges = tuple(noisy(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, closing=(), report=report)


def with_local_dp(
    method: Method,
    *,
    clip_norm: float,
    noise_multiplier: float,
    epsilon: float | None = None,
    delta: float = 1e-5,
    test_key: int | None = None,
) -> Method:
    """Wrap a method so that clients clip their updates and add noise before they reply (local DP).

    A client sends ``received + clip(u_k) + N(0, (z C)^2)`` in place of its tensors. A reply may only hold tensors of
    its order. Each exchange states in ``release`` the noise of a reply and the client's allowance, which
    ``privacy.ledger.answered`` enforces; repeated requests get the same noise.

    Parameters
    ----------
    method
        The method to wrap.
    clip_norm
        C, for the norm over all tensors of the reply.
    noise_multiplier
        z, the standard deviation of the noise in units of C.
    epsilon, delta
        The allowance of a client over all its replies; None for no bound.
    test_key
        For tests: draw the noise from this key, the client and the round. Otherwise it is drawn on the client from the
        operating system's entropy for every reply, never from the order's random stream, which the server knows.
    """
    release = Release(noise_multiplier, epsilon, delta)

    def noisy(exchange: Exchange) -> Exchange:
        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            reply, memory = exchange.work(client, order, memory)
            if any(tensor.is_meta for tensor in reply.params.values()):  # planning: shapes without numbers
                return _bare(reply), memory
            path = ("local", exchange.name, reply.client, order.round)
            generator = noise_generator(secret() if test_key is None else Rng(test_key, path))
            params = {
                name: moved(order.params[name], step + gaussian(step, clip_norm * noise_multiplier, generator))
                for name, step in clipped_step(order.params, reply, clip_norm).items()
            }
            return replace(_bare(reply), params=params), memory

        # noise is unbounded, so a range on replies no longer holds
        return exchange._replace(work=work, metrics=_no_metrics, ranges=None, release=release)

    return method._replace(exchanges=tuple(noisy(exchange) for exchange in method.exchanges), closing=())


def _no_metrics(order: Order) -> dict[str, Range]:
    return {}


def _bare(reply: Reply) -> Reply:
    return replace(reply, weight=1.0, metrics={})


def _noisy_mean(
    base: Mapping[str, Tensor], replies: Iterable[Reply], clip_norm: float, noise_multiplier: float, stream: Rng
) -> Params:
    sums: Params = {}
    senders: dict[str, int] = {}
    num_replies = 0
    for reply in replies:
        num_replies += 1
        for name, step in clipped_step(base, reply, clip_norm).items():
            sums[name] = sums[name] + step if name in sums else step
            senders[name] = senders.get(name, 0) + 1
    if not num_replies:
        raise RoundError("no replies to average; at least one client must answer")
    generator, deviation = noise_generator(stream), clip_norm * noise_multiplier
    return {
        name: moved(tensor, (sums[name] + gaussian(sums[name], deviation, generator)) / senders[name])
        for name, tensor in base.items()
        if name in sums
    }


def noise_generator(stream: Rng) -> np.random.Generator:
    """The generator of noise that hides something, at the start of a stream, with a seed of 128 bits.

    Those of torch use 32 bits of a seed on the CPU: whoever receives what the noise hides could try all of them.
    """
    return stream.numpy(128)


def gaussian(like: Tensor, deviation: float, generator: np.random.Generator) -> Tensor:
    """Gaussian noise of this standard deviation in the shape of a tensor, drawn as 64-bit numbers."""
    return (torch.from_numpy(generator.standard_normal(tuple(like.shape))) * deviation).to(like)
