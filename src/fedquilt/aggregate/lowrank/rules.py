"""Rules that combine the adapters of a round's clients into the server's, module by module.

A rule is a value and can be combined with any choice of layers. The server's factors have the layout's rank R. A client
of rank r is sent the first r columns of B, times ``s_R / s_r``, and the first r rows of A, so that with its own scale
its product is the server's truncated to r. Rules work on products that include their scales, see
``aggregate.lowrank.kernel``.

A rule needs all clients' factors of a module at once, so that they are held until the round ends; the head and other
tensors are averaged as they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import folded, redistributed, stacked
from fedquilt.aggregate.lowrank.residual import mean_factors, rationed, refined, residual
from fedquilt.aggregate.lowrank.robust_pca import amplified_mean
from fedquilt.aggregate.lowrank.rotation import gram_mean, rotated_mean
from fedquilt.aggregate.lowrank.segment import segment_mean, sparsity_weights
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.settings import Normalize, RuleSettings, Split
from fedquilt.core.bounds import limited
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product, ProductTree, factors, named, same_but_rank
from fedquilt.core.federation import Combined, Rule, Scaling
from fedquilt.core.params import select, without
from fedquilt.core.types import Params, Reply


class Outcome(NamedTuple):
    """The server's tensors after a round, the changes of the base, and what is carried to the next, by module."""

    params: Params
    change: dict[str, Product]
    carried: dict[str, ProductTree]


# The rules ------------------------------------------------------------

_DECOMPOSED = "its factors come from a new decomposition in every round"


def svd_rule(split: Split = RuleSettings.split) -> Rule:
    """FlexLoRA's rule: the mean of the products, truncated to the server's rank; ``split`` as in ``redistributed``."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        whole = folded(clients, base.A.shape[0])
        return Combined(redistributed(whole, base.A.shape[0], base.scale, split=split, spare=base.A))

    return Rule("flexlora", combine, unsteady=_DECOMPOSED)


def segment_rule(normalize: Normalize = RuleSettings.normalize) -> Rule:
    """HETLoRA's rule: the mean of factors padded to the server's rank, weighted by the norms of the clients' products.

    A weight is at most ``core.defence.RATIO`` times the median, as a client can choose the norm of its product.
    """

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        mean = segment_mean(Product(base.B * base.scale, base.A), clients, normalize)
        return Combined(_at(mean, base.scale))

    def weigh(clients: Sequence[Sequence[Factors]]) -> list[float]:
        return limited(sparsity_weights(clients))

    unsteady = "it counts ranks that a client lacks as zeros, so that factors shrink although no client changed them"
    return Rule("hetlora", combine, weigh=weigh, unsteady=unsteady, averages=True)


def stack_rule() -> Rule:
    """FLoRA's rule: the exact mean of the products is merged into the base, and every adapter starts afresh."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        return Combined(None, stacked(clients))

    unsteady = "its factors are merged into the base and start afresh in every round"
    return Rule("flora", combine, fresh=True, changes_base=True, unsteady=unsteady)


def residual_rule(residual_rank: int | None = RuleSettings.residual_rank) -> Rule:
    """FedEx-LoRA's rule: the mean of factors, with the residual merged into the base.

    With ``residual_rank`` None the whole residual is merged. Otherwise each round merges its best approximation of this
    rank, and the rest is carried over. At rank 0 nothing is merged or carried, which is FedIT.
    """

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        mean = _at(mean_factors(clients), base.scale)
        if residual_rank == 0:
            return Combined(mean)
        lost = residual(clients)
        return (
            Combined(mean, lost) if residual_rank is None else Combined(mean, *rationed(lost, residual_rank, carried))
        )

    unsteady = "the residual of the factors' mean is merged into the base, which is exact only for that mean"
    plain = residual_rank == 0
    return Rule("fedex-lora", combine, one_rank=True, changes_base=not plain, unsteady=unsteady, averages=plain)


def refined_rule(strength: float = RuleSettings.strength) -> Rule:
    """LoRA-FAIR's rule: the mean of factors, with B corrected towards the mean of the products."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        return Combined(_at(refined(clients, strength), base.scale))

    unsteady = "its B is fitted to its A in every round, and would not fit to an A that the server moved further"
    return Rule("lora-fair", combine, one_rank=True, unsteady=unsteady)


def rotated_rule() -> Rule:
    """FedRot-LoRA's rule: the mean of the clients' factors, each pair first rotated to the server's."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        return Combined(_at(rotated_mean(base, clients), base.scale))

    return Rule("fedrot-lora", combine, one_rank=True, averages=True)


def gram_rule() -> Rule:
    """FLoRG's rule: the mean Gram matrix of the clients' stacked factors, factored and rotated to the server's."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        return Combined(_at(gram_mean(base, clients), base.scale))

    return Rule("florg", combine, one_rank=True, unsteady=_DECOMPOSED)


def robust_pca_rule(sparse_scale: float = RuleSettings.sparse_scale) -> Rule:
    """FedRPCA's rule: the mean of factors, with the sparse, client-specific part of the updates scaled up."""

    def combine(base: Factors, clients: Sequence[Factors], carried: Product | None) -> Combined:
        return Combined(_at(amplified_mean(base, clients, sparse_scale), base.scale))

    return Rule("fedrpca", combine, one_rank=True, averages=True)


RULES: dict[str, Callable[..., Rule]] = {
    "flexlora": svd_rule,
    "hetlora": segment_rule,
    "flora": stack_rule,
    "fedex-lora": residual_rule,
    "lora-fair": refined_rule,
    "fedrot-lora": rotated_rule,
    "florg": gram_rule,
    "fedrpca": robust_pca_rule,
}
"""The rules by their names in run files; their arguments are keys of [aggregation]."""


# One round ------------------------------------------------------------


def dispatched(params: Mapping[str, Tensor], rank: int | None, scaling: Scaling) -> Params:
    """The server's tensors as they are sent to a client of this rank; unchanged if None or not below the server's."""
    result = dict(params)
    if rank is not None:
        pairs = factors(params)
        result |= named({module: _sent(pair, rank, partial(scaling, module)) for module, pair in pairs.items()})
    return {name: result[name] for name in params}


def merged(
    rule: Rule,
    base: Mapping[str, Tensor],
    replies: Iterable[Reply],
    weighting: str,
    scaling: Scaling,
    carried: Mapping[str, ProductTree] | None = None,
) -> Outcome:
    """Apply ``rule`` to the replies of a round, and the layer-wise mean to all tensors that are not factors.

    Each module is combined over the clients that sent it. A tensor that nobody sent is the same object as in ``base``,
    and so are the factors of a module that all clients returned unchanged.

    Parameters
    ----------
    rule
        The rule for LoRA factors.
    base
        The server's tensors.
    replies
        The replies, which are read once.
    weighting
        ``"examples"`` or ``"uniform"``.
    scaling
        The scale of the adapter at a module path with a rank.
    carried
        ``Outcome.carried`` of the round before.

    Raises
    ------
    RoundError
        as ``layerwise_mean``; if a reply holds one factor of a module without the other, or one that does not fit.
    """
    pairs = factors(base)
    names = named(pairs).keys()
    held: list[dict[str, Product]] = []  # the replies' factors, in the order of the replies
    weights: list[float] = []

    def others() -> Iterator[Reply]:
        for reply in replies:
            own = select(reply.params, names)
            _check(reply, own, base)
            held.append(factors(own))
            weights.append(float(reply.weight) if weighting == "examples" else 1.0)
            yield replace(reply, params=without(reply.params, names))

    params = layerwise_mean(without(base, names), others(), weighting)
    sent = [
        {m: Factors(*pair, scaling(m, pair.A.shape[0]), weight) for m, pair in one.items()}
        for one, weight in zip(held, weights, strict=True)
    ]
    if rule.weigh is not None:
        weighed = rule.weigh([list(one.values()) for one in sent])
        sent = [{m: f._replace(weight=w) for m, f in one.items()} for one, w in zip(sent, weighed, strict=True)]
    change: dict[str, Product] = {}
    carry = dict(carried or {})
    for module, pair in pairs.items():
        clients = [one[module] for one in sent if module in one]
        if not clients or (not rule.fresh and all(_unmoved(pair, c, partial(scaling, module)) for c in clients)):
            continue
        if not any(client.weight for client in clients):  # all of them sent only zeros
            clients = [client._replace(weight=1.0) for client in clients]
        server = Factors(*pair, scaling(module, pair.A.shape[0]))
        own = carry.pop(module, None)
        combined = rule.combine(server, clients, None if own is None else Product(**own))
        if combined.pair is not None:
            pairs[module] = Product(*(_plain(new.to(pair.A)) for new in combined.pair))
        if combined.change is not None and bool(combined.change.B.any()):
            change[module] = Product(*map(_plain, combined.change))
        if combined.carried is not None and combined.carried.rank:
            carry[module] = {"B": _plain(combined.carried.B), "A": _plain(combined.carried.A)}
    params |= named(pairs)
    return Outcome({name: params[name] for name in base}, change, carry)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as a contiguous one, as a checkpoint gives it: with other strides, sums differ in their last bits."""
    return tensor.contiguous()


def _at(product: Product, scale: float) -> Product:
    return Product(product.B / scale, product.A)


def _sent(pair: Product, rank: int, scale: Callable[[int], float]) -> Product:
    own = pair.A.shape[0]
    return pair if rank >= own else Product(pair.B[:, :rank] * (scale(own) / scale(rank)), pair.A[:rank])


def _unmoved(pair: Product, client: Factors, scale: Callable[[int], float]) -> bool:
    was = _sent(pair, client.A.shape[0], scale)
    return torch.equal(was.B, client.B) and torch.equal(was.A, client.A)


def _check(reply: Reply, own: Params, base: Mapping[str, Tensor]) -> None:
    """Raise RoundError if the factors of a reply are not complete pairs that fit the server's."""
    whole = factors(own)
    if len(own) != 2 * len(whole):
        lonely = min(own.keys() - named(whole).keys())
        raise RoundError(f"client {reply.client} sent tensor '{lonely}' without the module's other factor")
    for name, tensor in own.items():
        if not (same_but_rank(name, tensor.shape, base[name].shape) and tensor.is_floating_point()):
            raise RoundError(
                f"client {reply.client} sent tensor '{name}' as {tensor.dtype} {tuple(tensor.shape)}; "
                f"the server's is {base[name].dtype} {tuple(base[name].shape)}"
            )
    for module, (b, a) in whole.items():
        most = base[f"{module}.lora_A"].shape[0]
        if not a.shape[0] == b.shape[1] <= most:
            raise RoundError(
                f"client {reply.client} sent factors of '{module}' with ranks {b.shape[1]} and {a.shape[0]}; they must "
                f"be equal and at most the server's {most}"
            )
