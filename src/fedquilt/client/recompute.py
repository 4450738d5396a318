"""Gradient checkpointing: the backward pass computes the activations of each block again, so that none are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedquilt.client.model_config import forward_until

Again = Callable[[nn.Module], AbstractContextManager[object]]
"""Called before a block runs; the context that it returns is entered when the block runs for the second time."""


@contextmanager
def recomputed(blocks: Iterable[nn.Module], again: Again) -> Iterator[None]:
    """Keep only the inputs of these blocks for the backward pass, which runs each block a second time.

    Gradients are those of a pass that keeps all activations, bit by bit where a block computes the same twice: the
    second run has the random numbers and the autocast of the first, and the context ``again``. Passes without gradients
    are not affected. This wraps the blocks' own ``forward``, so that it works for a model of any library, and with some
    of the blocks left out (``shallow``).
    """
    with ExitStack() as undo:
        for block in blocks:
            forward_until(undo, block, partial(_run, block.forward, partial(again, block)))
        yield


def _run(
    forward: Callable[..., Any], again: Callable[[], AbstractContextManager[object]], *args: Any, **named: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)

    def run(*values: Any) -> Any:
        return forward(*values[: len(args)], **dict(zip(named, values[len(args) :], strict=True)))

    # named arguments are given by place: only those are kept as autograd keeps tensors
    return checkpoint(run, *args, *named.values(), use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
