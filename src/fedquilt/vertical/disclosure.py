"""Clipping and noise of everything that leaves a party: a function Method -> Method.

All that leaves a passive party is a reply, and all that leaves the active party is an order. Both are changed here and
nowhere else, by the names of their tensors; a tensor of an unknown name does not leave. Noise depends on a key that its
party alone knows, and on the content that it hides: the same content always gets the same noise, so that asking again
averages nothing away, and other content gets other noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, GRADIENTS, PROTOTYPES, Disclosure
from fedquilt.core.errors import TrainingError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng, secret
from fedquilt.core.server import SERVER
from fedquilt.core.types import ClientId, Memory, Order, Params, Reply, Tree, Turn
from fedquilt.core.vertical import Vertical
from fedquilt.core.worker import Worker
from fedquilt.privacy.noise import gaussian, noise_generator
from fedquilt.vertical import telling as names
from fedquilt.vertical.files import resolved
from fedquilt.vertical.party import party_of
from fedquilt.vertical.prototypes import unit
from fedquilt.vertical.relay import JOINT, OTHERS
from fedquilt.vertical.selection import NONE_SEEN

KEY = "disclosure"
"""The name of the key of a party's noise, in its memory or in the active party's state."""
VECTORS = "vectors"
"""The name of what an order counts among its settings: noisy vectors by kind, of itself (down) and its reply (up)."""

UP = {
    names.EMBEDDINGS: EMBEDDINGS,
    names.PROTOTYPES: PROTOTYPES,
    names.PRIOR: COUNTS,
    names.COUNTS: COUNTS,
    names.KEPT: COUNTS,
    JOINT: PROTOTYPES,
}
DOWN = {
    names.EMBEDDINGS: GRADIENTS,
    names.PROTOTYPES: GRADIENTS,
    names.PRIOR: COUNTS,
    OTHERS: EMBEDDINGS,
    JOINT: PROTOTYPES,
}
"""The kinds of what a passive party sends (up) and of what the active party sends (down), by the names of tensors."""
_SURE = 2.0  # a noisy number of rows below so many standard deviations is told as 0: it may be noise alone


class Side(NamedTuple):
    """One side of a federation: its noise, the random stream of its key, and the kinds of what it sends by name."""

    wanted: Disclosure
    stream: Rng
    kinds: Mapping[str, str]

    def noisy(self, name: str, rows: Tensor, bound: float, *about: str | int) -> Tensor:
        """Rows (..., m) clipped to the bound and with the noise of their kind; as they are where it has none.

        Parameters
        ----------
        name, rows
            The tensor's name and rows.
        bound
            Largest norm of a row.
        about
            What else names the stream.
        """
        kind = kind_of(name, self.kinds)
        if kind == GRADIENTS and self.wanted.gradient_clip is not None:
            bound *= self.wanted.gradient_clip
        elif not self.wanted.noises[kind]:
            return rows
        short: Tensor = rows * (bound / rows.norm(dim=-1, keepdim=True).clamp_min(bound))
        noise = self.wanted.noises[kind]
        return short + self.noise(name, short, bound * noise, *about) if noise else short

    def noise(self, name: str, hidden: Tensor, deviation: float, *about: str | int) -> Tensor:
        """Noise of this standard deviation that hides a tensor, whose content decides which."""
        content = hashlib.blake2b(hidden.detach().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        return gaussian(hidden, deviation, noise_generator(self.stream.child(*about, name, content)))


def kind_of(name: str, kinds: Mapping[str, str]) -> str:
    """The kind of a tensor.

    Raises
    ------
    TrainingError
        if nothing is known of a tensor of this name.
    """
    kind = kinds.get(JOINT if name.startswith(JOINT) else name)
    if kind is None:
        raise TrainingError(
            f"[disclosure]: the method would send the tensor '{name}', and how to clip it is not known; leave the "
            "section out, or take another method"
        )
    return kind


def reply_released(params: Params, side: Side) -> Params:
    """What a passive party sends in place of the tensors of its reply."""
    sent: Params = {}
    for name, tensor in params.items():
        kind = kind_of(name, side.kinds)
        if kind == EMBEDDINGS:
            noisy = side.noisy(name, tensor, 1.0)
            sent[name] = noisy if noisy is tensor else unit(noisy)
        elif kind == PROTOTYPES:
            sent[name] = side.noisy(name, tensor, 1.0)
        else:
            sent[name] = tensor
    if side.wanted.count_noise and names.COUNTS in params:
        sent |= _counted(params[names.COUNTS], side)
        if names.KEPT in params:  # what a party keeps changes in every round, and no noise would last: it is not told
            sent[names.KEPT] = torch.full_like(params[names.KEPT], NONE_SEEN)
    return sent


def _counted(counts: Tensor, side: Side) -> Params:
    """Noisy numbers of rows by class, and the prior that follows from them; one that was learned otherwise stays."""
    deviation = side.wanted.count_noise
    noisy = counts + side.noise(names.COUNTS, counts, deviation)
    told = noisy.round().masked_fill(noisy < _SURE * deviation, 0.0).clamp_min(0.0)
    return {names.COUNTS: told, names.PRIOR: (told + 1) / (told + 1).sum()}


def order_released(params: Params, side: Side, client: ClientId, rows: int) -> Params:
    """What the active party sends in place of the tensors of an order.

    Parameters
    ----------
    params, side
        The tensors, and the active party's side.
    client
        The party that is sent them; all parties get the same noise on what all are sent.
    rows
        A row of the active party is at most one in so many of those that a class prior counts.
    """
    sent: Params = {}
    minibatches = params[names.EMBEDDINGS].shape[0] if names.EMBEDDINGS in params else 1
    for name, tensor in params.items():
        kind = kind_of(name, side.kinds)
        if name == names.EMBEDDINGS:  # of the mean over a minibatch
            sent[name] = side.noisy(name, tensor, 1 / max(1, tensor.shape[1]), client)
        elif name == names.PROTOTYPES:
            sent[name] = side.noisy(name, tensor, float(minibatches), client)
        elif name == OTHERS:  # the active party is the last; the others' embeddings are noised already
            own = side.noisy(name, tensor[:, -1], 1.0)
            noisy = own if not side.wanted.embedding_noise else unit(own)
            sent[name] = torch.cat([tensor[:, :-1], noisy.unsqueeze(1)], 1)
        elif kind == PROTOTYPES:
            sent[name] = side.noisy(name, tensor, 1.0)
        elif side.wanted.count_noise:
            noisy = tensor + side.noise(name, tensor, side.wanted.count_noise / rows)
            sent[name] = noisy.clamp_min(1e-3) / noisy.clamp_min(1e-3).sum()
        else:
            sent[name] = tensor
    return sent


def vectors_of(params: Params, kinds: Mapping[str, str]) -> dict[str, int]:
    """How many vectors of each kind leave a party with these tensors; numbers of rows by class are one, with priors."""
    found: dict[str, int] = {}
    for name, tensor in params.items():
        kind = kind_of(name, kinds)
        rows = 1 if tensor.dim() < 2 else tensor.shape[:-1].numel()
        if kind == COUNTS:
            found[kind] = 1
        else:  # of what is relayed, the active party's own embeddings alone
            found[kind] = found.get(kind, 0) + (len(tensor) if name == OTHERS else rows)
    return found


def with_disclosure(method: Method, wanted: Disclosure, vertical: Vertical) -> Method:
    """The method of a vertical federation whose parties clip and noise what leaves them; unchanged where nothing is on.

    A passive party's key is in its memory, the active party's in the state, as ``disclosure``.
    """
    if not wanted.is_on:
        return method

    def init(rng: Rng) -> Tree:
        return {**method.init(rng), KEY: _new_key(wanted)}

    return method._replace(init=init, exchanges=tuple(_guarded(one, wanted, vertical) for one in method.exchanges))


def _guarded(exchange: Exchange, wanted: Disclosure, vertical: Vertical) -> Exchange:
    """The exchange through which only what is clipped and noised leaves a party."""

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        side = Side(wanted, _stream(state[KEY], exchange.name, SERVER), DOWN)
        now = resolved(vertical, state)
        held = [len(now.labels), len(party_of(now.active).train["labels"])]
        rows = min([count for count in held if count], default=1)
        return {
            client: _counting(exchange, replace(order, params=order_released(order.params, side, client, rows)))
            for client, order in exchange.ask(state, turn).items()
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        reply, after = exchange.work(client, order, memory)
        key = memory.get(KEY) or _new_key(wanted)
        side = Side(wanted, _stream(key, exchange.name, reply.client), UP)
        return replace(reply, params=reply_released(reply.params, side)), {**after, KEY: key}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {**exchange.merge(state, replies), KEY: state[KEY]}

    return exchange._replace(ask=ask, work=work, merge=merge)


def _counting(exchange: Exchange, order: Order) -> Order:
    """The order with the numbers of vectors that leave either side with it."""
    up = {} if exchange.expects is None else exchange.expects(order)
    told = {"down": vectors_of(order.params, DOWN), "up": vectors_of(up, UP)}
    return replace(order, settings={**order.settings, VECTORS: told})


def _new_key(wanted: Disclosure) -> str:
    """A key that nobody else knows, or the key for tests; hexadecimal."""
    return f"{secret().integer(128) if wanted.test_key is None else wanted.test_key:032x}"


def _stream(key: str, exchange: str, party: ClientId) -> Rng:
    """The random stream of a party's noise in an exchange."""
    return Rng(int(key, 16), (KEY, exchange, party))
