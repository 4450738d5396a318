"""The table of contradictions between a method's traits and the other settings of a run file.

It is checked before anything is loaded. ``buffers`` checks what depends on the models' layouts, once they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.aggregate.settings import Aggregation
from fedquilt.config.groups import Part, server_parts
from fedquilt.config.schema import Config
from fedquilt.config.sections import fields_of
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.adapter_contradictions import ADAPTERS
from fedquilt.experiment.bases import odd_bases
from fedquilt.experiment.contradictions import Case, Row, odd_ranks, odd_steps
from fedquilt.experiment.disclosure_contradictions import DISCLOSURE
from fedquilt.experiment.method import Chosen, keys_of
from fedquilt.experiment.public_inputs import odd_axes
from fedquilt.experiment.server import odd_server
from fedquilt.privacy.account import accountant


def refuse_contradictions(config: Config, parts: Sequence[Part], method: Chosen) -> None:
    """Raise ConfigError, with every contradiction, if the method does not support what the config asks for."""
    if config.privacy.mode != "none":
        accountant("privacy.mode")
    if config.disclosure.is_noisy:
        accountant("disclosure")
    case = Case(config, parts, method)
    problems = [row.text(case) for row in ROWS if row.holds(case)]
    problems += [
        *odd_ranks(parts),
        *odd_bases([*parts, *server_parts(config)]),
        *odd_steps(case),
        *odd_axes(config, parts),
    ]
    problems += odd_server(config, method)
    if problems:
        raise ConfigError(problems)


# The table ------------------------------------------------------------


def _is_of_another(key: str, rule: str | None = None) -> Callable[[Case], bool]:
    """Whether a key of [aggregation] is set that belongs to this rule (None: to alignment), which is not in use."""

    def asked(case: Case) -> bool:
        in_force = case.aligned if rule is None else case.config.aggregation.rule == rule
        return case.changed("aggregation", key) and not in_force

    return asked


_OF_ALIGNMENT = [key for key in fields_of(Aggregation) if key.startswith("align_")]

_RULES = (
    Row(
        lambda case: case.ruled,
        lambda traits: traits.rule,
        "{given}: method.name = '{name}' has its own aggregation rule; leave aggregation.rule out, or {instead}",
    ),
    Row(
        lambda case: case.combined,
        lambda traits: traits.sends != "all",
        "{given}: needs both factors of every client, and with method.name = '{name}' {sent}; leave aggregation.rule "
        "out, or {instead}",
    ),
    Row(
        lambda case: case.ruled,
        lambda traits: traits.merge == "own",
        "{given}: method.name = '{name}' merges replies in its own way; leave aggregation.rule out",
    ),
    Row(
        lambda case: case.ruled and (case.config.adapter.trained == "all" or case.method.traits.alignment != "auto"),
        lambda traits: traits.alignment not in (None, "none") and traits.merge == "mean",
        "{given}: method.name = '{name}' aligns the clients' updates and averages them; {instead}, or "
        "aggregation.rule = 'mean'",
    ),
    *(
        Row(
            _is_of_another(key, rule),
            None,
            f"aggregation.{key} = {{config.aggregation.{key}!r}}: only applies to aggregation.rule = '{rule}'; "
            f"{{leave[{key}]}}",
        )
        for rule in RULES
        for key in keys_of(rule)
    ),
    Row(
        lambda case: case.rule and case.rule.changes_base and case.config.network.dtype != "float32",
        None,
        "network.dtype = '{config.network.dtype}': '{rule.name}' changes the base of all clients, and rounding would "
        "make their bases differ from the server's; set network.dtype = 'float32'",
    ),
    Row(
        lambda case: case.rule and case.rule.fresh and case.config.defence.max_update_norm is not None,
        None,
        "defence.max_update_norm: with '{rule.name}' each client starts from its own adapter, so the server cannot "
        "compute its update; leave it out",
    ),
)

_PARTIES = (
    Row(
        lambda case: case.config.parties,
        lambda traits: not traits.vertical,
        "partition.scheme = 'vertical': with method.name = '{name}' all clients have the same columns; {instead}",
    ),
    Row(
        lambda case: not case.config.parties,
        lambda traits: traits.vertical,
        "method.name = '{name}': is of parties that hold other columns of the same rows; set partition.scheme = "
        "'vertical' and give [[parties]], or {instead}",
    ),
    Row(
        lambda case: case.config.parties and not case.kinds <= {"full", "lora"},
        None,
        "adapter.kind = '{config.adapter.kind}': the parties of a vertical federation share no adapters; set 'full' or "
        "'lora'",
    ),
)

_STEPS = (
    Row(
        lambda case: case.config.training.proximal > 0,
        lambda traits: traits.sends == "nothing",
        "training.proximal = {config.training.proximal}: with method.name = '{name}' a client receives nothing to stay "
        "near; set training.proximal = 0",
    ),
    Row(
        lambda case: case.config.training.proximal > 0,
        lambda traits: traits.trains == "own",
        "training.proximal = {config.training.proximal}: what clients train with method.name = '{name}' is not what "
        "they send; set training.proximal = 0",
    ),
    Row(
        lambda case: case.stepped,
        lambda traits: traits.sends == "nothing",
        "{step}: with method.name = '{name}' the server receives no updates; set aggregation.server_optimizer = 'none'",
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
            f"aggregation.{key} = {{config.aggregation.{key}!r}}: needs aggregation.align, which is 'none'; leave it "
            "out",
        )
        for key in _OF_ALIGNMENT
    ),
    Row(
        lambda case: (
            case.aligned and case.changed("aggregation", "align_sharpness") and case.config.aggregation.align != "soft"
        ),
        None,
        "aggregation.align_sharpness = {config.aggregation.align_sharpness!r}: is of aggregation.align = 'soft' alone; "
        "leave it out",
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.alignment is not None,
        "{align}: method.name = '{name}' has a rule of its own; set method.align, and leave it out",
    ),
    Row(
        lambda case: case.aligned,
        # in common coordinates alone all that is sent is averaged over all architectures
        lambda traits: traits.across and traits.alignment is None and traits.needs != "coordinates",
        "{align}: method.name = '{name}' averages some tensors over all architectures and others within each, which "
        "alignment cannot tell apart; {instead}, or leave aggregation.align out",
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.sends == "nothing",
        "{align}: with method.name = '{name}' there are no updates to align; leave it out",
    ),
    Row(
        lambda case: case.aligned,
        lambda traits: traits.rule,
        "{align}: needs a mean of updates, and method.name = '{name}' uses another rule; {instead}, or leave "
        "aggregation.align out",
    ),
    Row(
        lambda case: case.aligned and case.ruled,
        lambda traits: traits.rule is None and traits.alignment is None,
        "{align}: needs a mean of updates, and {given} is another rule; set aggregation.rule = 'mean', or "
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
        "privacy.client_epsilon = {config.privacy.client_epsilon:g}: only applies to privacy.mode = 'local', where "
        "each client limits its own privacy loss; leave it out",
    ),
    Row(
        lambda case: case.central,
        lambda traits: traits.rule,
        "{mode}: method.name = '{name}' does not use the sum of the clients' updates, so noise on that sum would "
        "not protect them; {instead}, or privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.config.privacy.mode == "local" and case.rule and case.rule.fresh,
        None,
        "{mode}: with '{rule.name}' each client starts from its own adapter, so there is no update to clip; take "
        "another method or rule",
    ),
    Row(
        lambda case: case.private and case.method.settings.get("weighting") == "examples",
        None,
        "{mode}: with method.weighting = 'examples' the influence of one client has no bound known in advance; "
        "set method.weighting = 'uniform'",
    ),
    Row(
        lambda case: case.private,
        lambda traits: traits.sends_scores,
        "{mode}: with {culprit} clients would send scores of their rows without noise; {instead}",
    ),
    Row(
        lambda case: case.private and case.config.evaluation.clients == "received",
        None,
        "{mode}: with evaluation.clients = 'received' clients would send scores on their own rows without noise; "
        "set evaluation.clients = false",
    ),
    Row(
        lambda case: case.central,
        lambda traits: traits.across or traits.merge == "own",
        "{mode}: method.name = '{name}' needs each client's update, and noise is added only to their sum; set "
        "privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.central and case.aligned,
        None,
        "{mode}: {align} needs each client's update, and noise is added only to their sum; set privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.central and case.ruled,
        None,
        "{mode}: {given} has no known bound on the influence of one client; set aggregation.rule = 'mean' "
        "(privacy.clip_norm clips already), or privacy.mode = 'local'",
    ),
    Row(
        lambda case: case.central and case.config.defence.max_update_norm is not None,
        None,
        "{mode}: dropping replies by defence.max_update_norm would reveal which clients' updates have a large norm; "
        "leave it out (privacy.clip_norm bounds every update already)",
    ),
    Row(
        lambda case: (
            case.central and case.changed("defence", "max_norm_ratio") and case.config.defence.max_norm_ratio != "off"
        ),
        None,
        "{mode}: a bound that depends on the other clients' updates, defence.max_norm_ratio = "
        "{config.defence.max_norm_ratio}, would reveal their norms; leave it out (privacy.clip_norm bounds every "
        "update already)",
    ),
)

ROWS: tuple[Row, ...] = (*_PARTIES, *_RULES, *_PRIVACY, *_STEPS, *_ALIGNMENT, *ADAPTERS, *DISCLOSURE)
"""Every contradiction, in the order in which they are reported."""
