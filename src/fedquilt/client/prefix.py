"""Activations below the shallowest trained block, kept for a client's rows while it trains.

Where only the upper blocks of a model are trained, what the lower ones make of a row is the same in every epoch of a
round. It is kept in the first one, and later ones begin at the shallowest trained block. Sums are rounded differently,
because a row then stands in another batch than when its activations were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedquilt.client.model_config import forward_until
from fedquilt.client.stacked.dropout import default_generator
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.training import Training, num_steps
from fedquilt.core.worker import Phase

Forward = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]
"""Logits and labels of a batch, given the numbers of its rows."""

_ERROR = 1e-3
"""The largest difference from the logits without a cache, relative to the largest of them."""

_RIGHT: WeakKeyDictionary[Workbench, dict[int, bool]] = WeakKeyDictionary()
"""By workbench and first block, whether the logits with a cache were those without, as tried once."""

_HIDDEN = "hidden_states"


def forward_of(bench: Workbench, phases: Sequence[Phase], num_rows: int, training: Training) -> Forward:
    """The forward pass of a client's training: with a cache if the workbench allows one, and rows come up again."""
    first = _first_trained(bench, phases)
    again = num_steps(num_rows, training) > -(-num_rows // (training.batch_size * training.accumulation))
    if bench.prefix_bytes and first and again and not training.gradient_checkpointing:
        return Prefix(bench, first, bench.prefix_bytes).forward
    return lambda batch, _: bench.forward(batch)


def _first_trained(bench: Workbench, phases: Sequence[Phase]) -> int:
    """The first block that is trained, or the last one if only the head is; 0 where nothing can be kept."""
    names = {name for phase in phases for name in phase.names}
    if len(phases) != 1 or bench.public is not None or names & bench.layout.buffers:
        return 0
    depths = [bench.layout.depth[name] for name in names if name in bench.layout.depth]
    return min((depth for depth in depths if depth is not None), default=bench.blocks.num_layers - 1)


class Prefix:
    """What enters block ``first``, by row, up to ``limit`` bytes.

    Nothing is kept of a model that draws random numbers below the block, as dropout does, that trains something there,
    or whose blocks do more than turn one tensor of hidden states, a row of a batch each, into the next.
    """

    def __init__(self, bench: Workbench, first: int, limit: int) -> None:
        self._bench, self._first, self._limit = bench, first, limit
        blocks = bench.model.get_submodule(bench.blocks.path)
        assert isinstance(blocks, nn.ModuleList)
        self._below, self._block = [*blocks][:first], blocks[first]
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0
        self._off = False

    def forward(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of a batch; the lower blocks are left out if they have seen all of its rows."""
        numbers = rows.tolist()
        if not self._off and self._kept.keys() >= {*numbers} and self._is_right(batch, numbers):
            with self._skipping(numbers):
                return self._bench.forward(batch)
        with nullcontext() if self._off else self._keeping(numbers):
            return self._bench.forward(batch)

    def _is_right(self, batch: Batch, numbers: Sequence[int]) -> bool:
        """Whether the model computes the same without its lower blocks, which is tried once for each first block."""
        tried = _RIGHT.setdefault(self._bench, {})
        if self._first not in tried:
            whole, short = (self._tried(batch, around) for around in (nullcontext(), self._skipping(numbers)))
            tried[self._first] = bool((short - whole).abs().max() <= _ERROR * whole.abs().max())
        self._off = not tried[self._first]
        return not self._off

    def _tried(self, batch: Batch, around: AbstractContextManager[None]) -> Tensor:
        """The logits, without any effect on random numbers to come."""
        source = default_generator(self._bench.device)
        state = source.get_state()
        with torch.no_grad(), around:
            logits = self._bench.forward(batch)[0]
        source.set_state(state)
        return logits

    @contextmanager
    def _keeping(self, numbers: Sequence[int]) -> Iterator[None]:
        """Keep what enters the block in a forward pass inside."""
        source = default_generator(self._bench.device)
        state = source.get_state()

        def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = args[0] if args else named.get(_HIDDEN)
            drawn = not torch.equal(source.get_state(), state)
            rows = isinstance(hidden, Tensor) and hidden.shape[:-2] == (len(numbers),) and not hidden.requires_grad
            if self._off or drawn or not rows:
                self._off = True
                return
            assert isinstance(hidden, Tensor)
            # a copy, because a block may add to its input in place
            self._kept |= dict(zip(numbers, hidden.detach().clone(), strict=True))
            self._bytes += hidden.nbytes
            self._off = self._bytes > self._limit

        def plain(_: nn.Module, args: object, output: object) -> None:
            self._off = self._off or not isinstance(output, Tensor)

        handles = [
            self._below[-1].register_forward_hook(plain),
            self._block.register_forward_pre_hook(note, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if self._off:
                self._kept.clear()

    @contextmanager
    def _skipping(self, numbers: Sequence[int]) -> Iterator[None]:
        """Leave out the lower blocks in a forward pass inside, and give the block what is kept of these rows."""

        def give(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            tokens = (args[0] if args else named[_HIDDEN]).shape[1]  # padding that a batch does not need is cut off
            hidden = torch.stack([_of_length(self._kept[number], tokens) for number in numbers])
            return ((hidden, *args[1:]), named) if args else (args, {**named, _HIDDEN: hidden})

        handle = self._block.register_forward_pre_hook(give, with_kwargs=True)
        try:
            with ExitStack() as undo:
                for block in self._below:
                    forward_until(undo, block, _unchanged)
                yield
        finally:
            handle.remove()


def _unchanged(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def _of_length(hidden: Tensor, tokens: int) -> Tensor:
    """One row's hidden states for so many tokens; those that are added are padding, which nothing attends to."""
    return pad(hidden[:tokens], (0, 0, 0, max(0, tokens - len(hidden))))
