"""What goes with what: one table over the traits of a method and what a run file asks of it.

It is read once, before anything is loaded. What depends on the models' layouts is checked by ``buffers`` when these
are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedquilt.adapters.registry import KINDS
from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.contradictions import Case, Row, odd_ranks
from fedquilt.experiment.method import Chosen, keys_of
from fedquilt.methods.traits import Traits
from fedquilt.privacy.account import accountant


def refuse_contradictions(config: Config, parts: Sequence[Part], method: Chosen) -> None:
    """Raise ConfigError, with every contradiction, if the method cannot do what the config and its groups ask for."""
    if config.privacy.mode != "none":
        accountant()
    case = Case(config, parts, method)
    problems = [row.told(case) for row in ROWS if row.holds(case)] + odd_ranks(parts)
    if problems:
        raise ConfigError(problems)


# The table ------------------------------------------------------------


def _has_kind(kind: str, *, combined: bool = False) -> Callable[[Case], bool]:
    return lambda case: kind in case.kinds and (case.combined or not combined)


def _needs(what: str) -> Callable[[Traits], bool]:
    return lambda traits: traits.needs == what


def _differs(key: str) -> Callable[[Case], bool]:
    return lambda case: case.differs("adapter", key)


def _is_of_another(key: str, rule: str | None = None) -> Callable[[Case], bool]:
    """Whether a key of [aggregation] is set that is of this rule, or of alignment, and that is not in force."""

    def asked(case: Case) -> bool:
        in_force = case.aligned if rule is None else case.config.aggregation.rule == rule
        return case.changed("aggregation", key) and not in_force

    return asked


_FACTORS = [name for name, kind in KINDS.items() if kind.has_factors]
_SHARED = [name for name, kind in KINDS.items() if kind.shares_branches]
_NEEDED = {"factors": ("LoRA factors", _FACTORS), "mixture": ("mixtures of adapters", _SHARED)}
"""What a method may need of adapters, in words, and the kinds that have it."""

_OF_BRANCHES = ("kind", "rank", "sites", "trained", "num_slots", "branches")
"""Keys of [adapter] that must be the same in all groups for their branches to be shared."""

_OF_ALIGNMENT = ("align_groups", "align_per", "align_equalise", "align_sharpness")

_ADAPTERS = (
    *(
        Row(
            _has_kind(other),
            _needs(needs),
            f"adapter.kind = '{other}': {{culprit}} needs {what}, and this kind has none; set adapter.kind = "
            f"'{fitting[0]}', or {{instead}}",
        )
        for needs, (what, fitting) in _NEEDED.items()
        for other in (name for name in KINDS if name not in fitting)
    ),
    *(
        Row(
            _has_kind(kind, combined=True),
            None,
            f"{{given}}: combines LoRA factors, and adapter.kind = '{kind}' has none; set aggregation.rule = 'mean'",
        )
        for kind in (name for name in KINDS if name not in _FACTORS)
    ),
    Row(
        lambda case: not case.kinds.isdisjoint(_SHARED),
        lambda traits: traits.drops_layers,
        "{culprit}: with adapter.kind = 'mixture' blocks share branches, which would be lost with one of them; "
        "{instead}",
    ),
    *(
        Row(
            _differs(key),
            lambda traits: traits.across and traits.needs == "mixture",
            f"adapter.{key} is not the same in all groups ({{by_group[{key}]}}), so their branches cannot be shared; "
            "set it in [adapter] and leave it out of the groups",
        )
        for key in _OF_BRANCHES
    ),
    Row(
        lambda case: case.differs("head", "policy"),
        lambda traits: traits.across,
        "method.name = '{name}': is one method for all groups, and so is head.policy; set it in [head] and leave it "
        "out of the groups",
    ),
)

_RULES = (
    Row(
        lambda case: case.ruled,
        lambda traits: traits.rule,
        "{given}: method.name = '{name}' is a rule of its own; leave aggregation.rule out, or {instead}",
    ),
    Row(
        lambda case: case.combined,
        lambda traits: traits.sends != "all",
        "{given}: combines both factors of a client, and with method.name = '{name}' {sent}; leave aggregation.rule "
        "out, or {instead}",
    ),
    Row(
        lambda case: case.ruled,
        lambda traits: traits.merge == "own",
        "{given}: method.name = '{name}' merges in its own way; leave aggregation.rule out",
    ),
    Row(
        lambda case: case.ruled and (case.config.adapter.trained == "all" or case.method.traits.alignment != "auto"),
        lambda traits: traits.alignment not in (None, "none") and traits.merge == "mean",
        "{given}: method.name = '{name}' aligns what clients send and takes its mean; {instead}, or aggregation.rule = "
        "'mean'",
    ),
    *(
        Row(
            _is_of_another(key, rule),
            None,
            f"aggregation.{key} = {{config.aggregation.{key}!r}}: is of aggregation.rule = '{rule}' alone; "
            f"{{leave[{key}]}}",
        )
        for rule in RULES
        for key in keys_of(rule)
    ),
    Row(
        lambda case: case.rule and case.rule.changes_base and case.config.network.dtype != "float32",
        None,
        "network.dtype = '{config.network.dtype}': '{rule.name}' changes the base of all clients, and a rounded change "
        "would make theirs another than the server's; set network.dtype = 'float32'",
    ),
    Row(
        lambda case: case.rule and case.rule.fresh and case.config.defence.max_update_norm is not None,
        None,
        "defence.max_update_norm: with '{rule.name}' clients begin with adapters of their own, which the server cannot "
        "subtract; leave it out",
    ),
)

_STEPS = (
    Row(
        lambda case: case.config.training.proximal > 0,
        lambda traits: traits.sends == "nothing",
        "training.proximal = {config.training.proximal}: with method.name = '{name}' a client receives nothing that it "
        "could be held near; set training.proximal = 0",
    ),
    Row(
        lambda case: case.config.training.proximal > 0,
        lambda traits: traits.trains == "own",
        "training.proximal = {config.training.proximal}: what clients train with method.name = '{name}' is not what "
        "travels; set training.proximal = 0",
    ),
    Row(
        lambda case: case.stepped,
        lambda traits: traits.sends == "nothing",
        "{step}: with method.name = '{name}' the server gets nothing to step by; set aggregation.server_optimizer = "
        "'none'",
    ),
    Row(
        lambda case: case.stepped,
        lambda traits: traits.rule is not None and traits.rule.unsteady,
        "{step} does not go with method.name = '{name}': {rule.unsteady}, and momentum over factors is not gauge "
        "invariant; set aggregation.server_optimizer = 'none'",
    ),
    Row(
        lambda case: case.stepped and case.combined and case.rule and case.rule.unsteady,
        lambda traits: traits.rule is None,
        "{step} does not go with {given}: {rule.unsteady}, and momentum over factors is not gauge invariant; set "
        "aggregation.server_optimizer = 'none'",
    ),
)

_ALIGNMENT = (
    *(
        Row(
            _is_of_another(key),
            None,
            f"aggregation.{key} = {{config.aggregation.{key}!r}}: is of aggregation.align, which is 'none'; leave it "
            "out",
        )
        for key in _OF_ALIGNMENT
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.alignment is not None,
        "{align}: method.name = '{name}' has a rule of its own; set method.align, and leave it out",
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.sends == "nothing",
        "{align}: with method.name = '{name}' nothing is sent that could be aligned; leave it out",
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.rule,
        "{align}: goes with a mean of updates alone, and method.name = '{name}' takes another one; {instead}, or leave "
        "aggregation.align out",
    ),
    Row(
        lambda case: case.aligned and case.ruled,
        lambda traits: traits.rule is None and traits.alignment is None,
        "{align}: goes with a mean of updates alone, and {given} takes another one; set aggregation.rule = 'mean', or "
        "leave aggregation.align out",
    ),
    Row(
        lambda case: case.aligned and case.config.aggregation.align_groups == "group" and not case.config.groups,
        None,
        "aggregation.align_groups = 'group': there are no [[groups]]; set it to 'client'",
    ),
)

_PRIVACY = (
    Row(
        lambda case: case.config.privacy.mode != "local" and case.config.privacy.client_epsilon is not None,
        None,
        "privacy.client_epsilon = {config.privacy.client_epsilon:g}: is of privacy.mode = 'local', where clients count "
        "what they give away; leave it out",
    ),
    Row(
        lambda case: case.central,
        lambda traits: traits.rule,
        "{mode}: method.name = '{name}' takes products of what each client sent, and not their sum, so that noise on "
        "the sum says nothing of it; {instead}, or privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.config.privacy.mode == "local" and case.rule and case.rule.fresh,
        None,
        "{mode}: with '{rule.name}' clients begin with adapters of their own, so that there is no update to clip; take "
        "another method or rule",
    ),
    Row(
        lambda case: case.private and case.method.settings.get("weighting") == "examples",
        None,
        "{mode}: with method.weighting = 'examples' what one client can change has no bound that is known beforehand; "
        "set method.weighting = 'uniform'",
    ),
    Row(
        lambda case: case.private,
        lambda traits: traits.sends_scores,
        "{mode}: with {culprit} scores of the clients' rows would leave them without noise; {instead}",
    ),
    Row(
        lambda case: case.private and case.config.evaluation.clients == "received",
        None,
        "{mode}: with evaluation.clients = 'received' scores on the clients' own rows would leave them without noise; "
        "set evaluation.clients = false",
    ),
    Row(
        lambda case: case.central,
        lambda traits: traits.across or traits.merge == "own",
        "{mode}: method.name = '{name}' needs to know whose update is whose, and noise is put on the sum of all; set "
        "privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.central and case.aligned,
        None,
        "{mode}: {align} needs to know whose update is whose, and noise is put on the sum of all; set privacy.mode = "
        "'local'",
    ),
    Row(
        lambda case: case.central and case.ruled,
        None,
        "{mode}: {given} has no known bound on what one client can change; set aggregation.rule = 'mean' "
        "(privacy.clip_norm clips already), or privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.central and case.config.defence.max_update_norm is not None,
        None,
        "{mode}: dropping replies by defence.max_update_norm would show which clients' updates are long; leave it out "
        "(privacy.clip_norm bounds every update already)",
    ),
    Row(
        lambda case: (
            case.central and case.changed("defence", "max_norm_ratio") and case.config.defence.max_norm_ratio != "off"
        ),
        None,
        "{mode}: a bound that depends on the other clients' updates, defence.max_norm_ratio = "
        "{config.defence.max_norm_ratio}, would show how long these are; leave it out (privacy.clip_norm bounds every "
        "update already)",
    ),
)

ROWS: tuple[Row, ...] = (*_RULES, *_PRIVACY, *_STEPS, *_ALIGNMENT, *_ADAPTERS)
"""Every contradiction, in the order in which they are reported."""
