"""A linear module, and a classifier's last one, with a trained matrix in common coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.common.settings import AnchoredSettings, CommonSettings
from fedquilt.adapters.lora.module import AroundLinear, num_features
from fedquilt.core.autocast import in_dtype_of
from fedquilt.core.factors import Product

ENDS = ("encoder", "decoder")
"""The names of the ends of an adapter, A and B."""

PARTS = ("common", "private")
"""The parts of a model: what all architectures share, and what is an architecture's or a client's own."""

WEIGHT, EVEN = "parts.common", 0.5
"""The name of the common part's weight in the mean of both parts' logits, a private tensor (1,), and its start."""


class CommonLinear(AroundLinear):
    """A linear module with a core between frozen axes: ``y = base(x) + s B (S A x + q)``.

    The encoder A (r, d_in) takes inputs into common coordinates, the decoder B (d_out, r) takes these into outputs. The
    centre of the inputs is left out, so that the adapter is linear and can be saved as LoRA. Axes are 0 until they are
    set. The core S (r, r) is a parameter of the model's module ``common``, shared by all modules of its site and slot
    and by all architectures. So is the offset q (r,), if there is one.

    Attributes
    ----------
    base : the linear module, unchanged.
    core_name : the name of its core in the model.
    ends : matrices in place of the axes, by the names of ``ENDS``; empty unless a client has trained some of its own.
    active : False for the base's output alone.
    """

    encoder: Tensor
    decoder: Tensor

    def __init__(
        self,
        base: nn.Module,
        settings: CommonSettings | AnchoredSettings,
        core: Mapping[str, nn.Parameter],
        offset: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        d_in, d_out = num_features(base)
        (self.core_name, parameter), device = *core.items(), next(iter(core.values())).device
        self.base, self.settings = base, settings
        # in a list: they are parameters of the model, not of this module
        self._core, self._offset = [parameter], [offset]
        self.ends: dict[str, Tensor] = {}
        self.active = True
        for name, shape in (("encoder", (settings.rank, d_in)), ("decoder", (d_out, settings.rank))):
            self.register_buffer(name, torch.zeros(shape, device=device), persistent=False)

    @property
    def core(self) -> nn.Parameter:
        """S, (r, r)."""
        return self._core[0]

    @property
    def offset(self) -> nn.Parameter | None:
        """The offset q, (r,)."""
        return self._offset[0]

    def shared_tensors(self) -> tuple[nn.Parameter, ...]:
        """The core, and the offset if there is one."""
        return (self.core,) if self.offset is None else (self.core, self.offset)

    def place(self, encoder: Tensor, decoder: Tensor) -> None:
        """Set the axes, in place."""
        self.encoder.copy_(encoder)
        self.decoder.copy_(decoder)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out), in the dtype of the base's output."""
        y: Tensor = self.base(x)
        if not self.active:
            return y
        a, b = self._ends
        z = F.linear(F.linear(in_dtype_of(x, self.core), a), self.core, self.offset)  # (..., r)
        return (y + self.settings.scaling * F.linear(z, b)).to(y.dtype)

    def folded(self) -> Product:
        """LoRA factors of scale 1 that compute what the adapter adds to the base's output, but for ``added_bias``."""
        a, b = (end.detach() for end in self._ends)
        return Product(self.settings.scaling * b @ self.core.detach(), a.clone())

    @property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.ends.get("encoder", self.encoder), self.ends.get("decoder", self.decoder)

    def added_bias(self) -> Tensor | None:
        """What the offset adds to the base's output, ``s B q``, (d_out,)."""
        return None if self.offset is None else self.settings.scaling * self._ends[1].detach() @ self.offset.detach()


class CommonHead(AroundLinear):
    """A classifier's last linear module with the common head: ``logits = base(h) + s V A (h - m)``.

    V (classes, r) is a parameter of the model's module ``common``, shared by all architectures with the same classes. A
    private change of the base's weight and bias, if there is one, is a parameter of this module.

    Attributes
    ----------
    base : the linear module, unchanged.
    parts : the parts that are added to the base's output, ``common`` and ``private``.
    """

    encoder: Tensor
    centre: Tensor

    def __init__(
        self, base: nn.Module, rank: int, scale: float, shared: nn.Parameter, *, private: bool = False
    ) -> None:
        super().__init__()
        d_in, outputs = num_features(base)
        self.base, self.scale, self._shared = base, scale, [shared]
        self.parts = frozenset(PARTS)
        self.register_buffer("encoder", torch.zeros(rank, d_in, device=shared.device), persistent=False)
        self.register_buffer("centre", torch.zeros(d_in, device=shared.device), persistent=False)
        self.private_weight = self.private_bias = None
        if private:
            zeros = partial(torch.zeros, device=shared.device)
            self.private_weight = nn.Parameter(zeros(outputs, d_in), requires_grad=False)
            if self.bias is not None:
                self.private_bias = nn.Parameter(zeros(outputs), requires_grad=False)

    @property
    def shared(self) -> nn.Parameter:
        """V, (classes, r)."""
        return self._shared[0]

    def place(self, encoder: Tensor, centre: Tensor) -> None:
        """Set the axes, in place; without a bias of the base the centre stays 0, as nothing could take it up."""
        self.encoder.copy_(encoder)
        if self.bias is not None:
            self.centre.copy_(centre)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., classes)."""
        y: Tensor = self.base(h)
        h, added = in_dtype_of(h, self.shared), y
        if "common" in self.parts:
            added = added + self.scale * F.linear(F.linear(h - self.centre, self.encoder), self.shared)
        if "private" in self.parts and self.private_weight is not None:
            added = added + F.linear(h, self.private_weight, self.private_bias)
        return added.to(y.dtype)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with which the base alone computes what this module does."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        if "common" in self.parts:
            change = self.scale * self.shared.detach() @ self.encoder
            weight, bias = weight + change, None if bias is None else bias - change @ self.centre
        if "private" in self.parts and self.private_weight is not None:
            weight = weight + self.private_weight.detach()
            bias = bias if bias is None or self.private_bias is None else bias + self.private_bias.detach()
        return weight, bias
