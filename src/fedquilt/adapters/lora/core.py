"""Low-rank adapters with a small square matrix, the core, between the factors: ``dW = s B (I + T) A``.

B (d_out, r) and A (r, d_in) depend on the model's width and stay with the client. The shape of the core T (r, r) does
not, so clients with different models can share it. Because of the identity I, T = 0 is plain LoRA, and a new adapter
with B = 0 leaves the model unchanged.

The modules are ``LoraLinear`` modules. Cores are computed for each forward pass from the trained tensors and put into
the modules for its duration (``with_cores``), so that gradients reach the trained tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.sites import Place, sites_of
from fedquilt.core.errors import ModelError
from fedquilt.core.factors import factors, named
from fedquilt.core.params import wide
from fedquilt.core.types import Params


def cores(values: Mapping[str, Tensor], places: Mapping[str, Place], rank: int) -> dict[str, Tensor]:
    """The core T (r, r) of every module: the values ``(num_layers, k)`` of its site at its layer, row by row.

    ``k`` is the square of a number up to r. If that number is smaller than r, the values fill the first rows and
    columns, and the rest is 0. Gradients flow to the values.

    Raises
    ------
    ValueError
        if ``k`` is not the square of a number up to r.
    """
    squares = {site: square(values[site], rank) for site in sites_of(places)}  # (num_layers, r, r)
    return {module: squares[place.site][place.layer] for module, place in places.items()}


@contextmanager
def with_cores(adapters: Mapping[str, LoraLinear], cores: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the adapters use these cores; the previous cores are restored when the context ends.

    Raises
    ------
    ModelError
        if a core belongs to no adapter, or its size is not the adapter's rank.
    """
    for name, core in cores.items():
        if name not in adapters:
            raise ModelError(f"there is a core for '{name}', which has no adapter")
        *stacked, rank, _ = adapters[name].lora_A.shape
        if core.shape != (*stacked, rank, rank):
            raise ModelError(f"the core of '{name}' is {tuple(core.shape)}; its adapter has rank {rank}")
    before = {name: adapters[name].core for name in cores}
    try:
        for name, core in cores.items():
            adapters[name].core = core
        yield
    finally:
        for name, core_before in before.items():
            adapters[name].core = core_before


def folded(params: Mapping[str, Tensor], cores: Mapping[str, Tensor]) -> Params:
    """The same adapters as plain LoRA of the same rank and scale: ``B (I + T)`` in place of B, and A unchanged.

    The function that they compute is the same up to the rounding of one product in float64. Modules without a core, and
    other tensors, are unchanged.

    Raises
    ------
    ModelError
        if a core belongs to no module in ``params``, or its size is not the module's rank.

    Paper: h2tune, triple
    """
    pairs = factors(params)
    taken: Params = dict(params)
    for module, core in cores.items():
        if module not in pairs:
            raise ModelError(f"there is a core for '{module}', which has no adapter")
        b, a = pairs[module]
        if core.shape != (len(a), len(a)):
            raise ModelError(f"the core of '{module}' is {tuple(core.shape)}; its adapter has rank {len(a)}")
        whole = wide(b.detach())
        taken |= named({module: ((whole + whole @ wide(core.detach())).to(b.dtype), a)})
    return taken


def drift(cores: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """The mean over modules of ``||T - T'||_F^2 / (2 r^2)``: a penalty on the distance of cores from reference cores.

    It keeps shared cores near those that the server sent. Gradients flow to both arguments.

    Paper: h2tune, anchor
    """
    terms = [nn.functional.mse_loss(core, reference[module]) / 2 for module, core in cores.items()]
    if not terms:
        raise ValueError("there are no cores to compute the drift of")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)


def square(values: Tensor, size: int) -> Tensor:
    """Values ``(..., k)``, k a square number, as matrices ``(..., size, size)``.

    The values fill the first sqrt(k) rows and columns, row by row; the rest is 0.

    Raises
    ------
    ValueError
        if k is not the square of a number up to ``size``.
    """
    width = math.isqrt(values.shape[-1])
    if width * width != values.shape[-1] or width > size:
        raise ValueError(f"{values.shape[-1]} values do not fill a square part of a matrix of {size} rows and columns")
    return F.pad(values.unflatten(-1, (width, width)), (0, size - width, 0, size - width))
