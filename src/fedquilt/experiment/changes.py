"""What a config says on changes of how any method trains and steps, joined to the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.aggregate.alignment.gradients import AlignSettings
from fedquilt.aggregate.alignment.wrapper import with_alignment
from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.aggregate.server_optimizer import NOT_BY_FACTORS, with_server_optimizer
from fedquilt.client.penalty import with_proximal
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.experiment.buffers import buffers_of

_OF_ALIGNMENT = ("align_groups", "align_per", "align_equalise", "align_sharpness")


def changed(config: Config, method: Method, federation: Federation, settings: Mapping[str, Any]) -> Method:
    """The method with the penalty in local training, the alignment and the server optimiser that the config asks for.

    ``settings`` are the method's arguments, defaults and all.
    """
    method, wanted = with_proximal(method, config.training.proximal), config.aggregation
    if wanted.align != "none":
        layouts = federation.layouts.values()
        adapted = frozenset[str]().union(*(frozenset(one.depth) - one.head - one.buffers for one in layouts))
        method = with_alignment(
            method,
            federation.profiles,
            adapted.__contains__,
            AlignSettings(wanted.align, wanted.align_per, wanted.align_equalise, wanted.align_sharpness),
            groups=wanted.align_groups,
            weighting=settings.get("weighting", "examples"),
            local_steps=federation.local_steps,
        )
    if wanted.server_optimizer == "none":
        return method
    return with_server_optimizer(
        method,
        wanted.server_optimizer,
        learning_rate=wanted.server_learning_rate,
        momentum=wanted.server_momentum,
        beta2=wanted.server_beta2,
        tau=wanted.server_tau,
        apart=buffers_of(federation.layouts.values()),
    )


def refuse_changes(config: Config, settings: Mapping[str, Any]) -> None:
    """Nothing, if the changes that the config asks for go with its method, the method's arguments and its rule.

    Raises
    ------
    ConfigError
        with every change that does not.
    """
    name, mu = config.method.name, config.training.proximal
    problems = []
    if mu > 0 and name == "local-only":
        problems.append(
            f"training.proximal = {mu}: with method.name = 'local-only' a client receives nothing that it could be "
            "held near; set training.proximal = 0"
        )
    if mu > 0 and name == "h2tune":
        problems.append(
            f"training.proximal = {mu}: what 'h2tune' trains is not what travels; its method.anchor holds the cores "
            "near what was sent, so set training.proximal = 0"
        )
    problems += server_optimizer_problems(config.aggregation.server_optimizer, name, config.aggregation.rule)
    problems += _odd_alignment(config, settings)
    if problems:
        raise ConfigError(problems)


def _odd_alignment(config: Config, settings: Mapping[str, Any]) -> list[str]:
    """What does not go with alignment, HeteroTune's and H2Tune's own or that of [aggregation]."""
    name, wanted, problems = config.method.name, config.aggregation, []
    fields = type(wanted).model_fields
    here = f"aggregation.align = '{wanted.align}'"
    if wanted.align == "none":
        problems += [
            f"aggregation.{key} = {getattr(wanted, key)!r}: is of aggregation.align, which is 'none'; leave it out"
            for key in _OF_ALIGNMENT
            if getattr(wanted, key) != fields[key].default
        ]
    elif name in ("heterotune", "h2tune"):
        problems.append(f"{here}: method.name = '{name}' has a rule of its own; set method.align, and leave it out")
    elif name == "local-only":
        problems.append(f"{here}: with method.name = 'local-only' nothing is sent that could be aligned; leave it out")
    elif name in RULES or wanted.rule != "mean":
        whose = f"method.name = '{name}'" if name in RULES else f"aggregation.rule = '{wanted.rule}'"
        problems.append(
            f"{here}: goes with a mean of updates alone, and {whose} takes another one; set method.name = 'fedit' or "
            "aggregation.rule = 'mean', or leave aggregation.align out"
        )
    elif wanted.align_groups == "group" and not config.groups:
        problems.append("aggregation.align_groups = 'group': there are no [[groups]]; set it to 'client'")
    own = name == "heterotune" and settings.get("share") and settings.get("align") != "none"
    own = own and (config.adapter.trained == "all" or settings.get("align") is not None)
    if own and wanted.rule != "mean":
        problems.append(
            f"aggregation.rule = '{wanted.rule}': method.name = 'heterotune' aligns what clients send and takes its "
            "mean; set method.align = 'none', or aggregation.rule = 'mean'"
        )
    if config.privacy.mode == "central" and (name == "heterotune" or wanted.align != "none"):
        which = "method.name = 'heterotune'" if name == "heterotune" else here
        problems.append(
            f"privacy.mode = 'central': {which} needs to know whose update is whose, and noise is put on the sum of "
            "all; set privacy.mode = 'local'"
        )
    return problems


def server_optimizer_problems(kind: str, method: str, rule: str) -> list[str]:
    """Why this server optimiser does not go with this method and this rule; empty if it does."""
    if kind == "none":
        return []
    here, leave = f"aggregation.server_optimizer = '{kind}'", "set aggregation.server_optimizer = 'none'"
    if method == "local-only":
        return [f"{here}: with method.name = 'local-only' the server gets nothing to step by; {leave}"]
    return [
        f"{here} does not go with {key} = '{value}': {NOT_BY_FACTORS[value]}, and momentum over factors is not gauge "
        f"invariant; {leave}"
        for key, value in (("method.name", method), ("aggregation.rule", rule))
        if value in NOT_BY_FACTORS
    ]
