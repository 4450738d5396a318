"""The rows of the table of contradictions that involve adapters."""

from __future__ import annotations

from collections.abc import Callable

from fedquilt.adapters.registry import KINDS
from fedquilt.experiment.contradictions import Case, Row
from fedquilt.methods.traits import Traits

_FACTORS = [name for name, kind in KINDS.items() if kind.has_factors]
_SHARED = [name for name, kind in KINDS.items() if kind.shares_branches]
_ANCHORED = ["anchored"]
_AGREED = [name for name, kind in KINDS.items() if kind.needs_public and name not in _ANCHORED]
_NEEDED = {
    "factors": ("LoRA factors", _FACTORS),
    "mixture": ("mixtures of adapters", _SHARED),
    "coordinates": ("adapters in common coordinates", _AGREED),
    "anchored": ("matrices between factors that are aligned to the smallest model's", _ANCHORED),
}
"""The adapters that a method may need, in words, and the kinds that have them."""

_OF_BRANCHES = ("kind", "rank", "sites", "trained", "num_slots", "branches", "num_blocks", "bias", "common_head")
"""Keys of [adapter] that must be the same in all groups for their branches to be shared."""


def _has_kind(kind: str, *, combined: bool = False, needs: str | None = None) -> Callable[[Case], bool]:
    return lambda case: (
        kind in case.kinds and (case.combined or not combined) and (needs is None or case.method.traits.needs == needs)
    )


def _lacks(kind: str) -> Callable[[Traits], bool]:
    """Whether this kind of adapter is not one that the method needs."""
    return lambda traits: traits.needs in _NEEDED and kind not in _NEEDED[traits.needs][1]


_OF_COORDINATES = ("rank", "sites", "num_slots")
"""Keys of [adapter] that must be the same in all groups for them to have common coordinates."""


def _public(case: Case) -> bool:
    return "common" in case.kinds


def _apart(key: str) -> Callable[[Case], bool]:
    return lambda case: _public(case) and case.differs("adapter", key)


def _private_less(case: Case) -> bool:
    """Whether a group has adapters in common coordinates and no LoRA beside the cores."""
    return any(p.config.adapter.kind == "common" and not p.config.adapter.private_rank for p in case.parts)


def _differs(key: str) -> Callable[[Case], bool]:
    return lambda case: case.differs("adapter", key)


ADAPTERS: tuple[Row, ...] = (
    *(
        Row(
            _has_kind(other, needs=needs),
            _lacks(other),
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
    *(
        Row(
            _has_kind(kind),
            lambda traits: traits.drops_layers,
            f"{{culprit}}: with adapter.kind = '{kind}' blocks share branches, so none can be left out; {{instead}}",
        )
        for kind in _SHARED
    ),
    *(
        Row(
            _differs(key),
            lambda traits: traits.across and traits.needs in ("mixture", "coordinates", "anchored"),
            f"adapter.{key} is not the same in all groups ({{by_group[{key}]}}), so their branches cannot be shared; "
            "set it in [adapter] and leave it out of the groups",
        )
        for key in _OF_BRANCHES
    ),
    *(
        Row(
            _apart(key),
            lambda traits: not traits.across,
            f"adapter.{key} is not the same in all groups ({{by_group[{key}]}}), so they have no common coordinates; "
            "set it in [adapter] and leave it out of the groups",
        )
        for key in _OF_COORDINATES
    ),
    Row(
        _public,
        lambda traits: traits.needs == "factors" and traits.across,
        "adapter.kind = 'common': {culprit} needs LoRA factors without cores beside them; {instead}, or set "
        "adapter.kind = 'lora'",
    ),
    Row(
        _private_less,
        lambda traits: traits.needs == "factors",
        "adapter.private_rank = 0: {culprit} needs LoRA factors, and there are none beside the cores; set "
        "adapter.private_rank to their rank, or {instead}",
    ),
    Row(
        lambda case: _private_less(case) and case.combined,
        None,
        "{given}: combines LoRA factors, and with adapter.private_rank = 0 there are none beside the cores; set "
        "adapter.private_rank to their rank, or aggregation.rule = 'mean'",
    ),
    Row(
        lambda case: (
            any(p.config.adapter.parts == "apart" for p in case.parts) and case.rule and case.rule.changes_base
        ),
        None,
        "adapter.parts = 'apart': '{rule.name}' merges changes into the base, which both parts have; leave it out, or "
        "take a method and aggregation.rule that average the factors",
    ),
    Row(
        lambda case: _public(case) and case.combined,
        lambda traits: traits.across,
        "{given}: method.name = '{name}' averages adapters in common coordinates and combines no LoRA factors; set "
        "aggregation.rule = 'mean', or {instead}",
    ),
    Row(
        lambda case: _public(case) and case.config.data.proxy > 0,
        None,
        "data.proxy = {config.data.proxy}: the server's own model has no common coordinates, so it would score layers "
        "without what the cores do; leave data.proxy out (method.scores_from = 'clients' needs none)",
    ),
    Row(
        lambda case: _public(case) and case.method.settings.get("share") is False,
        None,
        "method.share = false: with adapter.kind = 'common' axes.share says who shares; leave method.share out and set "
        "axes.share = 'architecture'",
    ),
    Row(
        lambda case: _public(case) and case.changed("axes", "share"),
        lambda traits: traits.sends == "nothing",
        "axes.share = '{config.axes.share}': with method.name = '{name}' nothing is sent, so that nothing is shared "
        "within an architecture either; leave it out, or {instead}",
    ),
    Row(
        lambda case: case.differs("head", "policy"),
        lambda traits: traits.across,
        "method.name = '{name}': all groups take part in one method and need the same head.policy; set it in [head] "
        "and leave it out of the groups",
    ),
    Row(
        lambda case: case.dora and case.rule and not case.rule.averages,
        None,
        "adapter.use_dora = true: '{rule.name}' combines the products s B A as changes of the weights, and DoRA's "
        "change of a weight, m (W + s B A) / ||W + s B A|| - W, is no such product; set adapter.use_dora = false, or "
        "take a method and aggregation.rule that average the factors",
    ),
    Row(
        lambda case: case.dora,
        lambda traits: traits.sends in ("A", "B", "alternating"),
        "adapter.use_dora = true: method.name = '{name}' trains or sends one factor without the other ({sent}), which "
        "is derived for the product B A and not for DoRA's magnitude; set adapter.use_dora = false, or {instead}",
    ),
    Row(
        lambda case: case.dora,
        lambda traits: traits.needs == "factors" and traits.across,
        "adapter.use_dora = true: method.name = '{name}' shares matrices between the factors among clients, and DoRA "
        "divides what such a matrix does by norms of each client's own; set adapter.use_dora = false, or {instead}",
    ),
)
"""Contradictions that involve adapters, in the order in which they are reported."""
