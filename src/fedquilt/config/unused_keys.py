"""Keys without effect because of the value of another key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.config.error_text import shown
from fedquilt.config.groups import group_problems, parts, server_parts, server_problems
from fedquilt.config.schema import Config, Group
from fedquilt.config.sections import default_of
from fedquilt.config.server import Server
from fedquilt.core.tasks import tasks_where

_ADAPTIVE = ("adam", "yogi")
_PRIVATE = ("central", "local")
_CLASSIFIERS = tasks_where(lambda task: task.has_classes)
_LANGUAGE = tasks_where(lambda task: task.writes)

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
"""Keys that only apply to some choices of another key of their section."""

OF_TASKS: Mapping[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("head", "policy"): (_CLASSIFIERS, "is of a classifier's head, and a model of {} has none"),
    ("training", "packing"): (_LANGUAGE, "puts several texts in a row, and a model of {} needs rows of their own"),
}
"""Keys that only apply to some tasks, and the reason."""

_Key = tuple[str, str]


def idle_problems(config: Config) -> list[str]:
    """Every key of a config's sections that differs from its default and has no effect.

    A key that groups share is reported if it has no effect in any of them.
    """
    return [*_idle_of_clients(config), *_idle_of_server(config)]


def _idle_of_server(config: Config) -> list[str]:
    """Keys without effect that the server sets itself."""
    if (
        config.parties
        or config.server is None
        or config.spoilt.touches("server", "training")
        or server_problems(config)
    ):
        return []
    own = [key for key in (*APPLIES, *OF_TASKS) if _says(config.server, *key)]
    found = [item for part in server_parts(config) for item in _idle(part.config, own).items()]
    return [f"server.{section}.{key}{why}" for (section, key), why in found]


def _idle_of_clients(config: Config) -> list[str]:
    if not config.groups:
        return [f"{section}.{key}{why}" for (section, key), why in _idle(config, [*APPLIES, *OF_TASKS]).items()]
    of_groups = [key for key in (*APPLIES, *OF_TASKS) if key[0] in Group.model_fields]
    found = _idle(config, [key for key in APPLIES if key not in of_groups])
    problems = [f"{section}.{key}{why}" for (section, key), why in found.items()]
    if config.spoilt.touches("groups", "model", "head", "training") or group_problems(config):
        return problems
    idle_by_group = [(part.place, config.groups[part.place], _idle(part.config, of_groups)) for part in parts(config)]
    for section, key in of_groups:
        inherited = []
        for place, group, idle in idle_by_group:
            why = idle.get((section, key))
            if not _says(group, section, key):
                inherited.append(why)
            elif why:
                problems.append(f"groups[{place}].{section}.{key}{why}")
        if inherited and all(inherited):
            problems.append(f"{section}.{key}{inherited[0]}")
    return problems


def _idle(config: Config, keys: Sequence[_Key]) -> dict[_Key, str]:
    """The keys that are set without effect, each with the rest of the message after its name."""
    found = {}
    for section, key in keys:
        table = getattr(config, section)
        value = getattr(table, key)
        if value == default_of(type(table), key):
            continue
        if (section, key) in APPLIES:
            choice, choices = APPLIES[section, key]
            made = getattr(table, choice)
            if made not in choices and not config.spoilt.touches(f"{section}.{choice}", f"{section}.{key}"):
                found[section, key] = of_another("", value, f"{section}.{choice}", choices, made)
            continue
        tasks, meaning = OF_TASKS[section, key]
        if config.model.task not in tasks and not config.spoilt.touches("model", f"{section}.{key}"):
            what = meaning.format(f"model.task = '{config.model.task}'")
            found[section, key] = f" = {shown(value)}: {what}; leave it out"
    return found


def _says(owner: Group | Server, section: str, key: str) -> bool:
    """Whether a group or the server sets this key itself."""
    own = getattr(owner, section, None)
    return own is not None and (section in ("model", "data") or key in own.model_fields_set)


def of_another(key: str, value: Any, choice: str, choices: Sequence[Any], made: Any) -> str:
    """The message for a key that only applies to other choices.

    Parameters
    ----------
    key, value
        The key's name as the message begins with it, and its value.
    choice
        The name of the other key, on which it depends.
    choices, made
        The values of the other key with which the key applies, and its actual value; None if it is left out.
    """
    fitting = " or ".join(shown(one) for one in choices if one is not None)
    now = "left out" if made is None else shown(made)
    return f"{key} = {shown(value)}: is of {choice} = {fitting} alone, and this is {now}; leave it out, or set {choice}"


def still_applies(section: str, keys: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a section without those that have no effect after a change."""
    gone = {
        key
        for (own, key), (choice, choices) in APPLIES.items()
        if own == section and choice in change and change[choice] not in choices
    }
    return {key: value for key, value in keys.items() if key not in gone}
