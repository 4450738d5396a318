"""Conversion of adapters with cores, shifts or other ranks to plain LoRA, which other tools read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedquilt.adapters.lora.core import folded
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.factors import CORE, SHIFT, Product, factors, named
from fedquilt.core.params import wide, without
from fedquilt.core.types import Params


def plain(params: Mapping[str, Tensor], settings: LoraSettings) -> tuple[Params, LoraSettings]:
    """The same adapters as plain LoRA factors, and the settings with each module's rank and alpha.

    A module with a ``core`` T gets ``B (I + T)`` in place of B. A module with a ``shift`` becomes one adapter of scale
    1: ``s B`` and ``A`` concatenated with a factorisation of the shift by singular values, without those that are
    rounding errors. A module whose rank differs from the settings keeps its factors, and its rank is noted in the
    settings. Plain LoRA is returned unchanged.
    """
    cores = {module: params[f"{module}.{CORE}"] for module in factors(params) if f"{module}.{CORE}" in params}
    params = folded(without(params, [f"{module}.{CORE}" for module in cores]), cores)
    pairs = factors(params)
    merged = [module for module in pairs if f"{module}.{SHIFT}" in params]
    other = [module for module, (_, a) in pairs.items() if len(a) != settings.rank_of(module)]
    if not merged and not other:
        return dict(params), settings
    alphas = {module: settings.alpha_of(module) for module in pairs}
    for module in merged:
        b, a = pairs[module]
        extra, scaled = _decomposed(params[f"{module}.{SHIFT}"]), b * settings.scaling(module, len(a))
        if bool(scaled.any()):
            pairs[module] = Product(torch.cat([scaled, extra.B], dim=1), torch.cat([a, extra.A]))
        else:  # B = 0 adds nothing but its rank
            pairs[module] = extra if len(extra.A) else Product(scaled, a)
        rank = len(pairs[module].A)
        alphas[module] = math.sqrt(rank) if settings.rslora else float(rank)
    ranks = {module: len(a) for module, (_, a) in pairs.items()}
    kept = without(params, [f"{module}.{SHIFT}" for module in merged])
    return {**kept, **named(pairs)}, replace(settings, rank_pattern=ranks, alpha_pattern=alphas)


def _decomposed(matrix: Tensor) -> Product:
    """A matrix as two factors of its numerical rank."""
    u, s, vh = torch.linalg.svd(wide(matrix), full_matrices=False)
    noise = torch.finfo(matrix.dtype).eps * max(matrix.shape)
    rank = int((s > noise * s[:1]).sum())
    root = s[:rank].sqrt()
    return Product((u[:, :rank] * root).to(matrix.dtype), (root[:, None] * vh[:rank]).to(matrix.dtype))
