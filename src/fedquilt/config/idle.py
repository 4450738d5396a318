"""Keys that nothing would come of, because of what another key says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADAPTIVE = ("adam", "yogi")
_PRIVATE = ("central", "local")

APPLIES: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("training", "momentum"): ("optimizer", ("sgd",)),
    ("training", "final_scale"): ("schedule", ("linear", "cosine")),
    ("aggregation", "trim_share"): ("rule", ("trimmed-mean",)),
    ("aggregation", "clip_norm"): ("rule", ("clipped-mean",)),
    ("aggregation", "server_learning_rate"): ("server_optimizer", ("momentum", *_ADAPTIVE)),
    ("aggregation", "server_momentum"): ("server_optimizer", ("momentum", *_ADAPTIVE)),
    ("aggregation", "server_beta2"): ("server_optimizer", _ADAPTIVE),
    ("aggregation", "server_tau"): ("server_optimizer", _ADAPTIVE),
    ("privacy", "clip_norm"): ("mode", _PRIVATE),
    ("privacy", "noise_multiplier"): ("mode", _PRIVATE),
    ("privacy", "delta"): ("mode", _PRIVATE),
    ("privacy", "test_key"): ("mode", _PRIVATE),
}
"""A key of a section, and the key beside it whose choices it goes with."""


def idle_problems(config: Any, where: str = "") -> list[str]:
    """Every key of a config's sections that has another value than its default, and that nothing would come of."""
    problems = []
    for (section, key), (choice, choices) in APPLIES.items():
        table = getattr(config, section)
        value, made = getattr(table, key), getattr(table, choice)
        if made in choices or value == type(table).model_fields[key].default:
            continue
        if config.spoilt.touches(f"{section}.{choice}", f"{section}.{key}"):
            continue
        fitting = " or ".join(f"'{one}'" for one in choices)
        problems.append(
            f"{where}{section}.{key} = {value!r}: is of {section}.{choice} = {fitting} alone, and this is '{made}'; "
            f"leave it out, or set {section}.{choice}"
        )
    if config.model.task == "image-classification" and not config.groups and not config.spoilt.touches("model"):
        length = config.model.max_length
        if length != type(config.model).model_fields["max_length"].default:
            problems.append(
                f"{where}model.max_length = {length}: counts tokens, and model.task = 'image-classification' has none; "
                "leave it out"
            )
    return problems


def still_applies(section: str, keys: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a section without those that a change of a choice leaves idle."""
    gone = {
        key
        for (own, key), (choice, choices) in APPLIES.items()
        if own == section and choice in change and change[choice] not in choices
    }
    return {key: value for key, value in keys.items() if key not in gone}
