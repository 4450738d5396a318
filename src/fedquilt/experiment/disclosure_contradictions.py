"""The rows of the table of contradictions that involve [disclosure]."""

from __future__ import annotations

from functools import partial

from fedquilt.config.parties import active_place
from fedquilt.config.sections import fields_of
from fedquilt.core.disclosure import KEYS, Disclosure
from fedquilt.experiment.contradictions import Case, Row
from fedquilt.methods.traits import Traits


def _set(key: str, case: Case) -> bool:
    return case.changed("disclosure", key)


def _set_for_parties(key: str, case: Case) -> bool:
    return bool(case.config.parties) and _set(key, case)


def _set_elsewhere(key: str, case: Case) -> bool:
    return not case.config.parties and _set(key, case)


def _without_noise(key: str, case: Case) -> bool:
    return _set_for_parties(key, case) and not case.config.disclosure.is_noisy


def _unlabelled(case: Case) -> bool:
    parties = case.config.parties
    return bool(case.config.disclosure.count_noise and parties) and not parties[active_place(parties)].labelled


def _sends_none(kind: str, traits: Traits) -> bool:
    return traits.vertical and kind not in traits.discloses


DISCLOSURE = (
    *(
        Row(
            partial(_set_elsewhere, key),
            None,
            f"disclosure.{key} = {{config.disclosure.{key}}}: is of [[parties]] that hold other columns of the same "
            "rows; leave it out, or see [privacy] for clients that share a model",
        )
        for key in fields_of(Disclosure)
    ),
    *(
        Row(
            partial(_set_for_parties, key),
            partial(_sends_none, kind),
            f"disclosure.{key} = {{config.disclosure.{key}}}: with {{culprit}} no {kind} leave a party; {{instead}}, "
            "or leave the key out",
        )
        for key, kind in KEYS.items()
    ),
    *(
        Row(
            partial(_without_noise, key),
            None,
            f"disclosure.{key} = {{config.disclosure.{key}}}: only applies where something is noised; leave it out, or "
            "set a noise",
        )
        for key in ("delta", "test_key")
    ),
    Row(
        _unlabelled,
        None,
        "disclosure.count_noise = {config.disclosure.count_noise:g}: the active party does not know the classes of its "
        "own rows, so its prior is learned, and noise on numbers would not hide it; set labelled = true for it, or "
        "leave count_noise out",
    ),
)
"""Every contradiction that involves [disclosure]."""
