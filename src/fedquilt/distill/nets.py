"""Small networks with one output, as named tensors: their initialisation, forward pass and regression."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.core.types import Params


class Output(NamedTuple):
    """The outputs of a network, (rows,), and the activations of all its hidden layers side by side, (rows, hidden)."""

    value: Tensor
    hidden: Tensor


def network(inputs: int, width: int, depth: int, rng: Rng, *, start: float | None = 0.0) -> Params:
    """A network with random weights.

    Parameters
    ----------
    inputs
        The number of inputs.
    width, depth
        The width of its hidden layers, and their number.
    rng
        The random stream of the weights.
    start
        The last bias, around which the outputs begin; None for outputs that are 0 until the network learns.
    """
    generator = rng.torch()
    widths = [inputs, *[width] * depth, 1]
    params: Params = {}
    for layer, (before, after) in enumerate(pairwise(widths)):
        bound = before**-0.5
        params[f"{layer}.weight"] = torch.empty(after, before).uniform_(-bound, bound, generator=generator)
        params[f"{layer}.bias"] = torch.empty(after).uniform_(-bound, bound, generator=generator)
    params[f"{depth}.bias"] = torch.full((1,), start or 0.0)
    if start is None:
        params[f"{depth}.weight"].zero_()
    return params


def forward(params: Params, inputs: Tensor) -> Output:
    """The network's outputs for rows of inputs, with ReLU between its layers."""
    depth, hidden = len(params) // 2 - 1, []
    for layer in range(depth):
        inputs = functional.relu(functional.linear(inputs, params[f"{layer}.weight"], params[f"{layer}.bias"]))
        hidden.append(inputs)
    value = functional.linear(inputs, params[f"{depth}.weight"], params[f"{depth}.bias"])  # (rows, 1)
    return Output(value.squeeze(-1), torch.cat(hidden, -1))


def gradients(params: Params, inputs: Tensor, block: int) -> Tensor:
    """The gradient of each row's output by all parameters, (rows, features): means over blocks of ``block``, norm 1.

    Paper: ee-net, gradient-features
    """

    def value(own: Params, row: Tensor) -> Tensor:
        return forward(own, row.unsqueeze(0)).value.squeeze(0)

    by_row = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(params, inputs)
    flat = torch.cat([tensor.flatten(1) for tensor in by_row.values()], 1)  # (rows, parameters)
    padded = functional.pad(flat, (0, -flat.shape[1] % block))
    return functional.normalize(padded.unflatten(1, (-1, block)).mean(-1), dim=1)


def num_blocks(params: Params, block: int) -> int:
    """The number of features that ``gradients`` has for a row."""
    return -(-sum(tensor.numel() for tensor in params.values()) // block)


def regressed(
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    absolute: bool,
) -> Params:
    """The network after ``epochs`` steps of Adam on all rows towards their targets; the given one stays as it is.

    Parameters
    ----------
    params
        The network to start from.
    inputs, targets
        The rows, (rows, inputs), and what its outputs should be, (rows,).
    epochs, learning_rate, weight_decay
        Number of steps, each on all rows, and settings of Adam.
    absolute
        Whether errors count by their absolute values instead of their squares.
    """
    own = {name: tensor.clone().requires_grad_(True) for name, tensor in params.items()}
    optimizer = torch.optim.Adam(own.values(), lr=learning_rate, weight_decay=weight_decay)
    loss = functional.l1_loss if absolute else functional.mse_loss
    inputs, targets = inputs.detach(), targets.detach()
    with torch.enable_grad():
        for _ in range(epochs):
            optimizer.zero_grad()
            loss(forward(own, inputs).value, targets).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in own.items()}
