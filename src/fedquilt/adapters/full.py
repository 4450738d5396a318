"""No adapter at all: the model's own weights are what is trained and what travels (full fine-tuning)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn

from fedquilt.adapters.inject import copied, own_parameters, trainable
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Layout, Params


def full_layout(
    model: nn.Module, blocks: Blocks, architecture: str, head: Collection[str] = (), resting: Collection[str] = ()
) -> Layout:
    """Names, depths and shapes of all the model's parameters but those ``resting``: by depth, the head last.

    What comes before the first block (embeddings) has the depth of the first, and what comes after the last (the final
    norm) that of the last, in the model's own order. So whoever trains some blocks alone trains these with them. A
    tensor that the model uses twice (tied embeddings) stands once.

    Raises
    ------
    ModelError
        if a head parameter is not in the model.
    """
    parameters, skipped = own_parameters(model, head), {*head, *resting}
    depth: dict[str, int | None] = {}
    latest = 0
    for name in parameters:
        own = blocks.depth(name)
        if own is not None:
            latest = blocks.num_layers - 1
        if name not in skipped:
            depth[name] = latest if own is None else own
    depth = dict(sorted(depth.items(), key=lambda item: item[1] or 0))
    depth |= {name: None for name in parameters if name in set(head)}
    return Layout(architecture, blocks.num_layers, depth, {name: tuple(parameters[name].shape) for name in depth})


def initial_full(layout: Layout, model: nn.Module) -> Callable[[Rng], Params]:
    """``make(rng)``: what training starts from, on the CPU: the weights as they are when this function is called."""
    start = {name: copied(parameter) for name, parameter in trainable(model, layout).items()}
    return lambda rng: dict(start)
