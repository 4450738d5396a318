"""HeteroTune: clients of different architectures share the branches of a mixture of adapters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fedquilt.adapters.mixture.inject import check_bank, shared_penalty
from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.alignment.wrapper import with_alignment
from fedquilt.aggregate.settings import Align, AlignPer, AlignSettings
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Factor, Penalty, With
from fedquilt.methods.layered import Weighting
from fedquilt.methods.sharing import sharing
from fedquilt.methods.traits import Traits

_SHARED = With("share", (True,))
_ALIGNED = With("align", (None, "projection", "reference", "soft", "mean"))


def heterotune(
    federation: Federation,
    *,
    share: bool = True,
    align: Align | None = None,
    per: Annotated[AlignPer, _SHARED, _ALIGNED] = AlignSettings.align_per,
    equalise: Annotated[bool, _SHARED, _ALIGNED] = AlignSettings.align_equalise,
    sharpness: Annotated[Penalty, _SHARED, With("align", ("soft",))] = AlignSettings.align_sharpness,
    server_learning_rate: Annotated[Factor, _SHARED, _ALIGNED] = 1.0,
    mu: Penalty = 0.0,
    decay: Penalty = 0.0,
    weighting: Weighting = "examples",
) -> Method:
    """Average branches over all clients that train them, and all other tensors within each architecture.

    For the adapters' ends, the gates and the head of architecture m this is ``X_m = sum_k p_k X_k`` over its clients k.

    In the first form (``adapter.trained = "own"``) a client trains only the branch of its architecture, while the
    branches of others are frozen; every client is sent all branches. In the second (``"all"``) all clients train all
    branches, and the architectures' updates of the branches are aligned (CMGA) before the server's step. With one
    architecture this is FedAvg. A client of budget b trains the b deepest blocks, and a branch if all blocks that use
    it are among them; it is sent all tensors of its model, and sends those that it trained.

    Parameters
    ----------
    federation : its clients may differ in architecture.
    share : False averages the branches within the architecture too: the same adapters without sharing across.
    align : the rule of alignment; ``mean`` only divides by local steps; ``none`` is the plain mean. If left out,
        ``projection`` if clients train all branches, and ``none`` if they train their own.
    per : the parts that are aligned separately: ``module`` (the branches of a slot and site), ``tensor`` or ``global``.
    equalise : first scale all architectures' gradients to the median norm.
    sharpness : kappa of the rule ``soft``.
    server_learning_rate : learning rate of the aligned gradient; 1 is the clients' mean step.
    mu, decay : strengths of two penalties on branches: on the change from the sent ones, and on their size.
    weighting : clients' weights in the means, by ``examples`` or ``uniform``.

    Raises
    ------
    ConfigError
        if the adapters are not mixtures, their branches have different shapes, or a setting is out of range or
        contradicts another one.

    Paper: heterotune, group-mean
    """

    def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        return shared_penalty(trained, start, mu, decay)

    rule = _rule(federation, share, align, (mu, decay))
    if rule == "none":
        _refuse_idle(per=per, equalise=equalise, server_learning_rate=server_learning_rate)
    method = sharing("heterotune", federation, share, penalty if mu or decay else None, weighting)
    if rule == "none":
        return method
    return with_alignment(
        method,
        federation.profiles,
        is_shared,
        AlignSettings(rule, per, equalise, sharpness),
        weighting=weighting,
        local_steps=federation.local_steps,
        learning_rate=server_learning_rate,
    )


def traits(settings: Mapping[str, Any]) -> Traits:
    """Mixtures of adapters, whose branches are shared across architectures and may be aligned."""
    aligned = settings["align"] or "auto"
    return Traits(needs="mixture", across=True, alignment=aligned if settings["share"] else "none")


def _refuse_idle(**settings: Any) -> None:
    """Raise ConfigError for settings of the alignment that differ from their defaults, as there is no alignment."""
    defaults = inspect.signature(heterotune).parameters
    idle = {key: value for key, value in settings.items() if value != defaults[key].default}
    if idle:
        raise ConfigError(
            [
                f"method.{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}: has no effect where "
                "branches are not aligned, as with adapter.trained = 'own' each is of one architecture; leave it out, "
                "or set adapter.trained = 'all'"
                for key, value in idle.items()
            ]
        )


def _rule(federation: Federation, share: bool, align: Align | None, penalties: tuple[float, float]) -> Align:
    """The rule of alignment; raise ConfigError if the settings contradict each other or the federation."""
    problems = []
    shapes = {
        own: {name: torch.empty(shape, device="meta") for name, shape in layout.shapes.items() if is_shared(name)}
        for own, layout in federation.layouts.items()
    }
    if bare := [own for own, branches in shapes.items() if not branches]:
        problems.append(
            f"method.name = 'heterotune': {bare[0]} has no mixture of adapters with branches to share; set "
            "adapter.kind = 'mixture'"
        )
    try:
        check_bank(shapes)
    except ModelError as error:
        problems.append(str(error))
    problems += [
        f"method.{key} = {value}: must be at least 0 and finite"
        for key, value in zip(("mu", "decay"), penalties, strict=True)
        if not 0 <= value < math.inf
    ]
    if not share and align not in (None, "none"):
        problems.append(
            f"method.align = '{align}': with method.share = false no tensors are shared that could be aligned; leave "
            "method.align out"
        )
    if any(federation.frozen.values()) and align not in (None, "none"):
        problems.append(
            f"method.align = '{align}': with adapter.trained = 'own' no two architectures train the same branch, so "
            "there is nothing to align; leave method.align out, or set adapter.trained = 'all'"
        )
    if problems:
        raise ConfigError(problems)
    if align is not None:
        return align
    return "none" if not share or any(federation.frozen.values()) else "projection"
