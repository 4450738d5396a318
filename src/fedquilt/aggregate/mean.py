"""The layer-wise mean: each tensor averaged over the clients that sent it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from fedquilt.core.errors import ConfigError, RoundError, suggestion
from fedquilt.core.params import moved, wide
from fedquilt.core.types import Params, Reply

WEIGHTINGS = ("examples", "uniform")


def layerwise_mean(base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str = "examples") -> Params:
    """The server's tensors after a round in which each client trained some of them.

    For every tensor, over the clients k whose reply holds it: ``base + sum_k w_k (theta_k - base) / sum_k w_k``, with
    ``w_k`` the number of examples, or 1 if ``weighting`` is ``"uniform"``. A tensor that nobody sent is the same object
    as in ``base``. If every reply holds every tensor, this is FedAvg, and on LoRA factors FedIT.

    ``replies`` is read once, and one reply is held at a time. Sums are in float64 (float32 on devices without it); the
    result has the dtype, shape and device of ``base``. Where all clients return what they received, the result is
    bit-identical to ``base``.

    Raises
    ------
    ConfigError
        if ``weighting`` is unknown.
    RoundError
        if there are no replies, or one has a weight that is not a number above 0, or a tensor that ``base`` does not
        have, or that has another shape or is not floating-point.

    Paper: fed-hello, layer-mean; fedavg, weighted-mean
    """
    mean = RunningMean(base, weighting)
    for reply in replies:
        mean.add(reply)
        del reply  # or it would be held while the next one is read
    return mean.result()


class RunningMean:
    """Accumulator of ``layerwise_mean``: ``add`` each reply, then call ``result``."""

    def __init__(self, base: Mapping[str, Tensor], weighting: str = "examples") -> None:
        if weighting not in WEIGHTINGS:
            raise ConfigError(
                f"method.weighting is '{weighting}'; it must be one of {', '.join(WEIGHTINGS)}"
                f"{suggestion(weighting, WEIGHTINGS)}"
            )
        self._base, self._weighting = base, weighting
        self._steps: Params = {}
        self._weights: dict[str, float] = {}
        self._num_replies = 0

    def add(self, reply: Reply, share: float = 1.0) -> None:
        """Add a reply, which is not kept, with this share of its step from the base."""
        check_reply(self._base, reply)
        self._num_replies += 1
        weight = float(reply.weight) if self._weighting == "examples" else 1.0
        for name, tensor in reply.params.items():
            base = self._base[name]
            step = (wide(tensor.detach().to(base.device)) - wide(base.detach())).mul_(weight * share)
            self._steps[name] = self._steps[name].add_(step) if name in self._steps else step
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> Params:
        """The mean of the replies so far.

        Raises
        ------
        RoundError
            if there was no reply.
        """
        if not self._num_replies:
            raise RoundError("no replies to average; at least one client must answer")
        return {
            name: moved(tensor, self._steps[name] / self._weights[name]) if name in self._steps else tensor
            for name, tensor in self._base.items()
        }


def check_reply(base: Mapping[str, Tensor], reply: Reply) -> None:
    """Raise RoundError if the reply cannot be averaged into ``base``.

    Its weight must be a number above 0, and its tensors floating-point tensors of ``base`` with the same shapes.
    """
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        raise RoundError(f"client {reply.client} sent weight {reply.weight}; it must be a number above 0")
    for name, tensor in reply.params.items():
        if name not in base:
            raise RoundError(
                f"client {reply.client} sent tensor '{name}', which the server does not have{suggestion(name, [*base])}"
            )
        if tensor.shape != base[name].shape:
            raise RoundError(
                f"client {reply.client} sent tensor '{name}' with shape {tuple(tensor.shape)}; "
                f"the server's has shape {tuple(base[name].shape)}"
            )
        if not (tensor.is_floating_point() and base[name].is_floating_point()):
            raise RoundError(
                f"client {reply.client} sent tensor '{name}' as {tensor.dtype} for the server's {base[name].dtype}; "
                "only floating-point tensors can be averaged"
            )
