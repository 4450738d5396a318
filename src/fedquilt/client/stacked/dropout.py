"""Dropout of clients side by side: each client's own random stream draws what it would draw if it trained alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedquilt.core.rng import Rng


class Extent(NamedTuple):
    """The rows of one client in a part of a step, and the tokens of its longest one; 0 tokens for rows without any."""

    rows: int
    tokens: int


class OwnDropout(TorchFunctionMode):
    """Dropout in which each client's rows are dropped by a stream of its own.

    A batch has equally many rows of each client, which are filled up from its own number (``extents``), and in texts
    equally many tokens. What is filled up draws nothing.

    Parameters
    ----------
    device
        The device of the model.
    streams
        The clients' random streams.

    Attributes
    ----------
    extents
        Each client's rows and tokens in the batch that is passed through the model.
    drew
        Whether anything has been dropped.
    """

    def __init__(self, device: torch.device, streams: Sequence[Rng]) -> None:
        super().__init__()
        self._default = default_generator(device)
        self._states = [rng.torch(device).get_state() for rng in streams]
        self.extents: Sequence[Extent] = ()
        self.drew = False

    def keep(self, places: Sequence[int]) -> None:
        """Let go of all clients but those at these places."""
        self._states = [self._states[place] for place in places]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the functions of dropout."""
        named = kwargs or {}
        if self.extents and func is functional.dropout:
            return self._dropped(*args, **named)
        if self.extents and func is functional.scaled_dot_product_attention:
            return self._attended(*args, **named)
        return func(*args, **named)

    def _dropped(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        width, tokens = len(input) // len(self.extents), max(own.tokens for own in self.extents)
        masks = []
        for place, own in enumerate(self.extents):
            part = input.detach()[place * width : (place + 1) * width]
            where = (slice(own.rows), *(_tokens(own, tokens, axis, part) for axis in range(1, part.dim())))
            mask = torch.zeros_like(part)
            mask[where] = self._drawn(place, partial(functional.dropout, torch.ones_like(part[where]), p))
            masks.append(mask)
        return input * torch.cat(masks)

    def _attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        **named: Any,
    ) -> Tensor:
        attend = functional.scaled_dot_product_attention
        if dropout_p == 0:
            return attend(query, key, value, attn_mask=attn_mask, dropout_p=0.0, **named)
        width, made = len(query) // len(self.extents), []
        for place, own in enumerate(self.extents):
            rows, tokens = slice(place * width, place * width + own.rows), slice(own.tokens or query.shape[-2])
            mask = attn_mask
            if mask is not None:
                mask = (mask[rows] if len(mask) == len(query) else mask)[..., tokens, tokens]
            parts = tuple(part[rows, :, tokens] for part in (query, key, value))
            options = {"attn_mask": mask, "dropout_p": dropout_p, **named}
            out = self._drawn(place, partial(_called, attend, parts, options))
            short = query.shape[-2] - out.shape[-2]
            made.append(functional.pad(out, (0, 0, 0, short, 0, 0, 0, width - own.rows)))
        return torch.cat(made)

    def _drawn(self, place: int, draw: Callable[[], Tensor]) -> Tensor:
        """What ``draw`` gives, drawing from a client's stream."""
        self.drew = True
        before = self._default.get_state()
        self._default.set_state(self._states[place])
        try:
            return draw()
        finally:
            self._states[place] = self._default.get_state()
            self._default.set_state(before)


def _tokens(own: Extent, tokens: int, axis: int, part: Tensor) -> slice:
    """The entries of an axis that are a client's: its tokens, if it is an axis of tokens.

    That is the second axis of features (rows, tokens, width), and the last two of attention weights (rows, heads,
    tokens, tokens).
    """
    of_tokens = axis == 1 if part.dim() == 3 else part.dim() == 4 and axis > 1
    return slice(own.tokens) if own.tokens and of_tokens and part.shape[axis] == tokens else slice(None)


def _called(func: Callable[..., Tensor], args: tuple[Tensor, ...], named: dict[str, Any]) -> Tensor:
    return func(*args, **named)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that a model on this device draws from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or torch.cuda.current_device()]
    return torch.default_generator
