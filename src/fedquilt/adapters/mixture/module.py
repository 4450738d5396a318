"""Dense mixtures of adapters (DeMA): projections of the model's width around branches that all models can share.

An adapter follows the attention and the feed-forward part of each block: ``down`` (r, d) projects the features to r
dimensions, ``up`` (d, r) projects them back. Between the two is a mixture of M branches, square matrices (r, r), one
for each architecture of the federation. Every token passes through all branches, weighted by a gate. Projections and
gates are averaged within an architecture. Branches are shared by clients of different widths and depths: each block has
a depth slot (``sites.slots_of``), and there is one set of branches for each slot.

The first version of the method trains only a client's own branch and freezes the others (``trained = "own"``), the
second trains them all (``"all"``). The branches are parameters of the model, in an added module ``mixture``:
``mixture.<part>.<slot>.<branch>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedquilt.adapters.lora.module import AroundLinear, is_transposed, num_features
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.stacks import linear
from fedquilt.core.autocast import in_dtype_of
from fedquilt.core.errors import ModelError
from fedquilt.core.params import wide
from fedquilt.core.rng import Rng


class MixtureLinear(AroundLinear):
    """A linear module with a mixture of adapters after or beside it: ``y + s up mixed(phi(down h))``, y = base(x).

    ``h`` is ``y`` (serial) or ``x`` (parallel), phi the activation. ``down`` is (r, width of h), ``up`` (d_out, r);
    gates are ``gate`` (M,), or ``gate_weight`` (M, r) and ``gate_bias`` (M,). All are float32 and zero until values are
    set, and require no gradient. ``experts`` are the M branches (r, r) by name, which are parameters of the model's
    bank; without them, as in a block that shares nothing, the mixture is the plain adapter ``y + s up phi(down h)``.
    With ``active`` False the output is the base's. While clients are trained side by side, the tensors are stacks of
    theirs, see ``adapters.stacks``.
    """

    def __init__(
        self, base: nn.Module, settings: MixtureSettings, experts: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        super().__init__()
        d_in, d_out = num_features(base)
        device = next(chain(base.parameters(), base.buffers())).device
        self.base = base
        self.settings = settings
        # plain tuples: the parameters belong to the model's bank, where blocks of one slot share them
        self.expert_names = tuple(experts or ())
        self.experts = tuple((experts or {}).values())

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)

        self.down = zeros(settings.rank, d_out if settings.placement == "serial" else d_in)
        self.up = zeros(d_out, settings.rank)
        if self.experts and settings.gate == "static":
            self.gate = zeros(len(self.experts))
        if self.experts and settings.gate == "token":
            self.gate_weight = zeros(len(self.experts), settings.rank)
            self.gate_bias = zeros(len(self.experts))
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """``y + s up mixed(phi(down h))``, (..., d_in) -> (..., d_out), in the dtype of y = base(x).

        Paper: heterotune, adapter
        """
        y: Tensor = self.base(x)
        if not self.active:
            return y
        z = linear(in_dtype_of(y if self.settings.placement == "serial" else x, self.down), self.down)  # (..., r)
        if self.settings.activation == "gelu":
            z = F.gelu(z)
        return (y + self.settings.scaling * linear(self.mixed(z), self.up)).to(y.dtype)  # (..., d_out)

    def mixed(self, z: Tensor) -> Tensor:
        """``z + sum_j g_j S_j z``, (..., r) -> (..., r): all branches for every token, weighted by the gates.

        Paper: heterotune, mixture
        """
        if not self.experts:
            return z
        gates = self.gates(z)
        if self.down.dim() > 2:
            return z + self._mixed_by_client(z, gates)
        stacked = torch.stack(self.experts)  # (M, r, r)
        if gates.dim() == 1:  # one mixture for all tokens
            return z + F.linear(z, torch.tensordot(gates, stacked, dims=1))
        branches = torch.einsum("mij,...j->...mi", stacked, z)  # (..., M, r)
        return z + (gates.unsqueeze(-1) * branches).sum(-2)

    def _mixed_by_client(self, z: Tensor, gates: Tensor) -> Tensor:
        """``sum_j g_j S_j z`` of stacked clients, (..., r) -> (..., r)."""
        if self.settings.gate == "token":
            branches = linear(z, torch.cat(self.experts, dim=1)).unflatten(-1, (len(self.experts), -1))  # (..., M, r)
            weighted: Tensor = gates.unsqueeze(-1) * branches
            return weighted.sum(-2)
        stacked = torch.stack(self.experts, dim=1)  # (K, M, r, r)
        return linear(z, (gates.view(-1, len(self.experts), 1, 1) * stacked).sum(1))

    def gates(self, z: Tensor) -> Tensor:
        """The weight of each branch: (M,), or (..., M) with token gates; positive, with sum 1.

        Paper: heterotune, gates
        """
        if self.settings.gate == "uniform":
            return torch.full((len(self.experts),), 1 / len(self.experts), dtype=z.dtype, device=z.device)
        if self.settings.gate == "static":
            return self.gate.softmax(-1)
        return linear(z, self.gate_weight, self.gate_bias).softmax(-1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``B = up (I + sum_j g_j S_j)`` (d_out, r) and ``A = down``, so that the adapter is ``s B A h``; in float64.

        Raises
        ------
        ModelError
            if the adapter is not linear.

        Paper: heterotune, linear-form
        """
        if self.settings.activation != "identity":
            raise ModelError(
                f"adapter.activation is '{self.settings.activation}', so the mixture is not linear and cannot be "
                "folded into weights; keep it as an adapter, or train with adapter.activation = 'identity'"
            )
        if self.experts and self.settings.gate == "token":
            raise ModelError(
                "adapter.gate is 'token': the gates differ between tokens, so the mixture is not linear and cannot "
                "be folded into weights; keep it as an adapter, or train with adapter.gate = 'static'"
            )
        up, down = wide(self.up.detach()), wide(self.down.detach())
        if not self.experts:
            return up, down
        gates = wide(self.gates(self.down).detach())
        stacked = torch.stack([wide(expert.detach()) for expert in self.experts])
        return up + up @ torch.tensordot(gates, stacked, dims=1), down

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight (oriented as the base's) and bias with which the base alone computes what this module does.

        With ``E = s B A`` of ``factors``: ``W + E`` and ``b`` in parallel, ``W + E W`` and ``b + E b`` in series.

        Raises
        ------
        ModelError
            if the adapter is not linear.

        Paper: heterotune, fold
        """
        b, a = self.factors()
        weight = wide(self.weight.detach())
        matrix = weight.T if is_transposed(self.base) else weight  # (d_out, d_in)
        bias = None if self.bias is None else self.bias.detach()
        if self.settings.placement == "parallel":
            matrix = matrix + self.settings.scaling * (b @ a)
        else:
            matrix = matrix + self.settings.scaling * (b @ (a @ matrix))
            if bias is not None:
                bias = (wide(bias) + self.settings.scaling * (b @ (a @ wide(bias)))).to(bias.dtype)
        return (matrix.T if is_transposed(self.base) else matrix).contiguous().to(self.weight.dtype), bias

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """LoRA factors B (d_out, r), A (r, d_in) of the same scale with which the base computes what this module does.

        In series ``A = down W``.

        Raises
        ------
        ModelError
            if the adapter is not linear, or is serial and would change the base's bias, which LoRA cannot.
        """
        b, a = self.factors()
        if self.settings.placement == "serial":
            if self.bias is not None and bool((b @ (a @ wide(self.bias.detach()))).any()):
                raise ModelError(
                    "a serial mixture also acts on the bias of the module before it, which a LoRA cannot change; fold "
                    "it into the weights, or train with adapter.placement = 'parallel'"
                )
            weight = wide(self.weight.detach())
            a = a @ (weight.T if is_transposed(self.base) else weight)
        return b.to(self.up.dtype), a.to(self.down.dtype)


def drawn_expert(name: str, settings: MixtureSettings, rng: Rng) -> Tensor:
    """The initial branch of this name, (r, r): normal numbers of variance ``deviation^2 / r``, or zeros.

    It depends only on its name and the stream, so the server's bank is the same whatever models are in the federation.
    No two drawn branches are equal: equal branches would stay equal in training.

    Paper: heterotune, branch-draw
    """
    deviation = settings.drawn_deviation
    if deviation == 0:
        return torch.zeros(settings.rank, settings.rank)
    drawn = torch.randn(settings.rank, settings.rank, generator=rng.child("experts", name).torch())
    return drawn * (deviation / math.sqrt(settings.rank))


def drawn_down(name: str, rank: int, width: int, rng: Rng) -> Tensor:
    """The initial ``down`` of modules of this name, (r, width): normal numbers of variance ``1 / width``."""
    return torch.randn(rank, width, generator=rng.child("mixture", name).torch()) / math.sqrt(width)
