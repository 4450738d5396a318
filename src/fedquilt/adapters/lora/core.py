"""Low-rank adapters with a small square matrix between the two factors: ``dW = s B (I + T) A``.

B (d_out, r) and A (r, d_in) are as wide as the model and stay with their client; the core T (r, r) knows nothing of the
model's width, so clients of unlike models can share it. Because of the I an absent core is plain LoRA: nothing is lost
before the clients have agreed on anything, and B = 0 alone makes a fresh adapter change nothing.

The modules are ``lora.LoraLinear``s. Cores are values, made anew for each forward pass from what is trained, and put
into the modules for a while (``with_cores``); so gradients reach whatever they were made of.
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

    ``k`` is the square of a number up to r; of a smaller one the values are in the first rows and columns, and the rest
    is 0. Gradients go to the values.

    Raises
    ------
    ValueError
        if ``k`` is no such square.
    """
    squares = {site: square(values[site], rank) for site in sites_of(places)}  # (num_layers, r, r)
    return {module: squares[place.site][place.layer] for module, place in places.items()}


@contextmanager
def with_cores(adapters: Mapping[str, LoraLinear], cores: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the adapters act with these cores; each as it was before when the context ends.

    Raises
    ------
    ModelError
        if a core is of no adapter, or not as wide as its adapter's rank.
    """
    for name, core in cores.items():
        if name not in adapters:
            raise ModelError(f"there is a core for '{name}', which has no adapter")
        rank = len(adapters[name].lora_A)
        if core.shape != (rank, rank):
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
    """The same adapters as plain LoRA of the same rank and scale: ``B (I + T)`` for B, and A as it was.

    What is computed stays the same but for the rounding of one product, which is taken in float64. Modules without a
    core, and other tensors, are as they were.

    Raises
    ------
    ModelError
        if a core is of no module in ``params``, or does not have its rank.

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
    """How far cores are from others of the same shapes: the mean over modules of ``||T - T'||_F^2 / (2 r^2)``.

    What keeps shared knowledge near what the server sent. Gradients go to both.

    Paper: h2tune, anchor
    """
    terms = [nn.functional.mse_loss(core, reference[module]) / 2 for module, core in cores.items()]
    if not terms:
        raise ValueError("there are no cores whose drift could be told")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)


def square(values: Tensor, size: int) -> Tensor:
    """Values ``(..., k)``, k a square, as matrices ``(..., size, size)``: row by row in the first rows and columns, 0
    elsewhere.

    The values of a ``grid`` of as many rows and columns are then the submatrix in which they meet.

    Raises
    ------
    ValueError
        if k is not the square of a number up to ``size``.
    """
    width = math.isqrt(values.shape[-1])
    if width * width != values.shape[-1] or width > size:
        raise ValueError(f"{values.shape[-1]} values are no square part of a matrix of {size} rows and columns")
    return F.pad(values.unflatten(-1, (width, width)), (0, size - width, 0, size - width))
