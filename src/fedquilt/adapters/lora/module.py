"""Low-rank adaptation (LoRA) of a linear module, which itself stays unchanged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.stacks import linear, scaled
from fedquilt.core.autocast import in_dtype_of
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params


class AroundLinear(nn.Module):
    """A module around a linear one, ``base``, whose weight and bias model code may ask for."""

    base: nn.Module

    @property
    def weight(self) -> Tensor:
        """The base's weight, for model code that asks a linear module for its dtype or device."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias  # type: ignore[return-value]


class LoraLinear(AroundLinear):
    """A linear module with a low-rank term added to its output: ``y = base(x) + s B A dropout(x)``.

    ``lora_A`` is (r, d_in) and ``lora_B`` (d_out, r), both float32 and zero until values are set. ``set_factor``
    accepts values of another rank; ``s`` always follows the current rank. ``base`` is any module that maps d_in to
    d_out features; only its forward is called, so it may be quantised.

    ``shift`` (d_out, d_in), if set, is a change merged into the base, whose output is then ``base(x) + shift x``.
    ``core`` T (r, r), if set, makes the term ``s B (I + T) A dropout(x)``; it is no parameter of this module, and
    gradients flow to it. ``lora_bias`` (d_out,), if the settings ask for it, is added to the product before it is
    scaled, as by PEFT. With ``active`` False the output is the base's.

    While clients are trained side by side, the tensors are stacks of theirs, see ``adapters.stacks``, padded to the
    largest rank. ``scales`` (K,) are then their scalings if their own ranks differ.

    Raises
    ------
    ModelError
        if the base has no attributes for its numbers of features.
    """

    def __init__(self, base: nn.Module, settings: LoraSettings, name: str = "") -> None:
        super().__init__()
        d_in, d_out = num_features(base)
        rank = settings.rank_of(name)
        device = next(chain(base.parameters(), base.buffers())).device  # some quantised modules hold buffers only
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(rank, d_in, device=device), requires_grad=False)
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank, device=device), requires_grad=False)
        bias = torch.zeros(d_out, device=device) if settings.lora_bias else None
        self.lora_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.shift: Tensor | None = None
        self.core: Tensor | None = None
        self._scaling = partial(settings.scaling, name)
        self.scales: Tensor | None = None
        self.dropout = settings.dropout
        self.active = True

    @property
    def scaling(self) -> float:
        """The scaling ``s`` at the current rank of the factors."""
        return self._scaling(self.lora_A.shape[-2])

    def scaling_at(self, rank: int) -> float:
        """The scaling ``s`` at another rank of the factors."""
        return self._scaling(rank)

    def set_factor(self, factor: str, value: Tensor) -> None:
        """Set ``"lora_A"`` or ``"lora_B"`` to a value of any rank; the other factor must follow before a forward."""
        parameter: nn.Parameter = getattr(self, factor)
        if parameter.shape == value.shape:
            with torch.no_grad():
                parameter.copy_(value)
        else:
            parameter.data = value.detach().to(parameter.device, parameter.dtype, copy=True)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base keeps its weight as (d_in, d_out), as GPT-2's Conv1D does."""
        return is_transposed(self.base)

    def forward(self, x: Tensor) -> Tensor:
        """``base(x) + s B (I + T) A dropout(x)``, (..., d_in) -> (..., d_out), in the dtype of the base's output.

        The term is computed in the dtype of the factors and added before the sum is rounded, as in PEFT.

        Paper: lora, delta
        """
        y = self.without(x)
        if not self.active:
            return y
        return (y + self.term(F.dropout(x, self.dropout, self.training))).to(y.dtype)  # (..., d_out)

    def without(self, x: Tensor) -> Tensor:
        """The output without the adapter: the base's, with what was merged into it."""
        y: Tensor = self.base(x)
        return y if self.shift is None else (y + F.linear(in_dtype_of(x, self.lora_A), self.shift)).to(y.dtype)

    def term(self, x: Tensor) -> Tensor:
        """The adapter's own ``s (B (I + T) A x + bias)``, (..., d_in) -> (..., d_out)."""
        h = linear(in_dtype_of(x, self.lora_A), self.lora_A)  # (..., r)
        if self.core is not None:
            h = h + linear(h, self.core)
        scale = self.scaling if self.scales is None else self.scales
        if self.lora_A.dim() > 2 and self.lora_bias is None:
            return linear(scaled(h, scale), self.lora_B)  # fewer numbers to scale
        return scaled(linear(h, self.lora_B, self.lora_bias), scale)

    def delta(self) -> Tensor:
        """The dense ``s B (I + T) A + shift``, shaped as the base's weight: (d_out, d_in); (d_in, d_out) for Conv1D."""
        return self._dense().T if self.fan_in_fan_out else self._dense()

    def _dense(self) -> Tensor:
        """``s B (I + T) A + shift``, (d_out, d_in)."""
        a = self.lora_A.detach()
        if self.core is not None:
            a = a + self.core.detach() @ a
        scale = self.scaling if self.scales is None else self.scales
        dense = scaled(self.lora_B.detach() @ a, scale)
        return dense if self.shift is None else dense + self.shift

    def merged(self) -> Tensor:
        """The base's weight plus ``delta()``: a linear module with it computes what this one does without dropout."""
        return (self.weight.detach() + self.delta()).to(self.weight.dtype)


def num_features(module: nn.Module) -> tuple[int, int]:
    """``(d_in, d_out)`` of a linear module or of GPT-2's Conv1D.

    Raises
    ------
    ModelError
        if the module has neither pair of attributes.
    """
    for names in (("in_features", "out_features"), ("nx", "nf")):
        numbers = [getattr(module, name, None) for name in names]
        if all(isinstance(number, int) for number in numbers):
            return numbers[0], numbers[1]  # type: ignore[return-value]
    raise ModelError(
        f"a {type(module).__name__} cannot be adapted: it has no in_features and out_features; "
        "choose linear modules in adapter.targets"
    )


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can adapt this module."""
    has_features = hasattr(module, "in_features") or (hasattr(module, "nx") and hasattr(module, "nf"))
    return (
        has_features
        and len(inspect.signature(type(module).forward).parameters) == 2  # itself and its input
        and next(chain(module.parameters(), module.buffers()), None) is not None
    )


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module keeps its weight as (d_in, d_out), or was quantised from one that does."""
    return bool(getattr(module, "transposed", not hasattr(module, "in_features") and hasattr(module, "nf")))


def initial_factors(name: str, d_in: int, d_out: int, rank: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """``A`` (r, d_in), uniform in ``+-1/sqrt(d_in)``, and ``B`` (d_out, r), zero: the model is unchanged at first.

    Parameters
    ----------
    name
        The module's path, or what modules with the same first factors have in common.
    d_in, d_out, rank
        The module's numbers of input and output features, and the rank r.
    rng
        The stream of all adapters. ``A`` is drawn from ``rng.child("lora", name)``, whatever else is adapted.

    Paper: lora, init
    """
    bound = 1 / math.sqrt(d_in)
    uniform = torch.rand(rank, d_in, generator=rng.child("lora", name).torch())
    return (2 * uniform - 1) * bound, torch.zeros(d_out, rank)


def merged_weights(adapters: Mapping[str, LoraLinear]) -> Params:
    """The merged weight and bias of every active adapter, by their names in the model without adapters.

    Raises
    ------
    ModelError
        if an adapter has a bias and the module that it is merged into has none.
    """
    merged = {f"{name}.weight": adapter.merged() for name, adapter in adapters.items() if adapter.active}
    for name, adapter in adapters.items():
        if not adapter.active or adapter.lora_bias is None or not bool(adapter.lora_bias.any()):
            continue
        if adapter.bias is None:
            raise ModelError(
                f"'{name}' has no bias, so the bias of its adapter cannot be merged into it; export the adapter beside "
                "its base, or train it without a bias"
            )
        added = adapter.scaling * adapter.lora_bias.detach()
        merged[f"{name}.bias"] = (adapter.bias.detach() + added).to(adapter.bias.dtype)
    return merged
