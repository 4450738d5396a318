"""The proximal term of FedProx, and the wrapper that adds it to any method."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedquilt.core.method import Exchange, Method
from fedquilt.core.types import Memory, Order, Reply
from fedquilt.core.worker import Worker


def proximal(trained: Mapping[str, Tensor], start: Mapping[str, Tensor], names: Collection[str], mu: float) -> Tensor:
    """``mu / 2 sum ||theta - theta_0||^2`` over those of the tensors ``names`` that are trained, a scalar.

    theta_0 are the tensors of ``start``. Gradients flow only to ``trained``. On LoRA factors it penalises the change of
    each factor, not that of their product.

    Paper: fedprox, proximal-term
    """
    distances = [(tensor - start[name].detach()).square().sum() for name, tensor in trained.items() if name in names]
    return mu / 2 * torch.stack(distances).sum() if distances else torch.zeros(())


def with_proximal(method: Method, mu: float) -> Method:
    """The method whose clients add ``proximal`` to their loss, so that they stay near the received tensors.

    The penalty covers the trained tensors that a client returns to the server, but not its local ones
    (``memory["params"]``). With mu = 0 the method itself is returned.

    Raises
    ------
    ValueError
        if mu is below 0 or not finite.
    """
    if not 0 <= mu < float("inf"):
        raise ValueError(f"mu is {mu}; it must be at least 0 and finite")
    if mu == 0:
        return method

    def holding(exchange: Exchange) -> Exchange:
        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            asked_for = order.params if exchange.expects is None else exchange.expects(order)
            held = asked_for.keys() - memory.get("params", {}).keys()

            def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
                return proximal(trained, start, held, mu)

            return exchange.work(client.penalised(penalty), order, memory)

        return exchange._replace(work=work)

    return method._replace(exchanges=tuple(holding(exchange) for exchange in method.exchanges))
