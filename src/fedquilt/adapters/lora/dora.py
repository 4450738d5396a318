"""Weight-decomposed low-rank adaptation (DoRA): a low-rank adapter whose module also learns the norms of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.stacks import weighted
from fedquilt.core.errors import ModelError


class DoraLinear(LoraLinear):
    """A linear module with the weight ``W' = m V / ||V||``, ``V = W + s B A``, and the base's bias.

    ``W`` is the base's weight, with one row for each output feature. ``||V||`` are the norms of the rows of V, and the
    magnitude ``m`` is ``lora_magnitude_vector``, (d_out,), float32; its first value is ``||W||``, so that with B = 0
    the module computes what its base does. The norms are computed in float32 for each forward pass, and no gradient
    flows through them, as in the paper (section 4.3) and in PEFT. A row of zeros stays one.

    With dropout, in training, everything but the base's own output is computed from ``dropout(x)``, as in PEFT.
    ``shift`` and ``core`` are part of V.

    Raises
    ------
    ModelError
        if the base's weight does not consist of floating-point numbers.
    """

    def __init__(self, base: nn.Module, settings: LoraSettings, name: str = "") -> None:
        super().__init__(base, settings, name)
        own = getattr(base, "weight", None)
        if not isinstance(own, Tensor) or not own.is_floating_point():
            kind = own.dtype if isinstance(own, Tensor) else "none"
            raise ModelError(
                f"adapter.use_dora = true: needs the weight of '{name}' in floating-point numbers, and a "
                f"{type(base).__name__}'s is {kind}; set adapter.use_dora = false, or load the model without "
                "quantization"
            )
        self._held: Tensor | None = None
        self.lora_magnitude_vector = nn.Parameter(self.norms(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``base(x) + (m / ||V|| V - W) dropout(x)``, (..., d_in) -> (..., d_out), in the dtype of the base's output.

        Paper: dora, decomposition
        """
        y = self.without(x)
        if not self.active:
            return y
        plain = y
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
            plain = self.without(x)
        plain = plain.to(self.lora_magnitude_vector.dtype)
        bias: Tensor | None = getattr(self.base, "bias", None)
        if bias is not None:
            plain = plain - bias
        return (y + (weighted(plain + self.term(x), self.factor()) - plain)).to(y.dtype)

    def factor(self) -> Tensor:
        """``m / ||V||``, (d_out,); gradients flow to m alone."""
        if self._held is not None:
            return self._held
        return self.lora_magnitude_vector / _divisor(self.norms())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """``||V||``, the norms of the rows of V, (d_out,) in float32."""
        with _exact(self.lora_A.device):
            found: Tensor = torch.linalg.vector_norm(self._rows(), dim=-1)
            return found

    @torch.no_grad()
    def direction(self) -> Tensor:
        """``V / ||V||``, (d_out, d_in) in float32."""
        with _exact(self.lora_A.device):
            rows = self._rows()
            return rows / _divisor(torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The dense ``W' - W``, shaped as the base's weight: (d_out, d_in); (d_in, d_out) for Conv1D."""
        change = self.lora_magnitude_vector.unsqueeze(1) * self.direction() - self._weight()
        return change.T if self.fan_in_fan_out else change

    def _rows(self) -> Tensor:
        """V, (d_out, d_in)."""
        return self._weight() + self._dense()

    def _weight(self) -> Tensor:
        """The base's W, (d_out, d_in), in the dtype of the factors."""
        own = self.weight.detach().to(self.lora_A.dtype)
        return own.T if self.fan_in_fan_out else own


@contextmanager
def unchanging(adapters: Iterable[LoraLinear]) -> Iterator[None]:
    """Compute the norms of these adapters once for all forward passes inside, which must not change them.

    One token of a generated answer would otherwise cost as much as a product of all weights with the factors.
    """
    held = [adapter for adapter in adapters if isinstance(adapter, DoraLinear)]
    try:
        for adapter in held:
            adapter._held = adapter.factor().detach()
        yield
    finally:
        for adapter in held:
            adapter._held = None


def _exact(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, which would round the norms' products to half precision; the meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _divisor(norms: Tensor) -> Tensor:
    """The norms, above 0: a row of zeros has no direction, and is 0 for any m instead of no number."""
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)
