"""Errors whose text is meant for the user.

The message of such an error is complete: it names the key or file, shows the value, says what is allowed and what to
do next. The command prints it and exits with a non-zero code; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path


class FedquiltError(Exception):
    """The base of every error whose text is meant for the user."""


class ConfigError(FedquiltError):
    """The run file is invalid; ``problems`` holds every problem that was found, not only the first."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(FedquiltError):
    """The data cannot be read, or cannot be partitioned as requested."""


class ModelError(FedquiltError):
    """The model cannot be loaded, or its structure is not supported."""


class RunError(FedquiltError):
    """The run folder cannot be created, written, read or resumed."""


class TrainingError(FedquiltError):
    """One client's local training failed; its update is dropped and the round goes on."""


class DivergedError(TrainingError):
    """A loss, a penalty or the norm of a gradient is not finite."""


class WireError(FedquiltError):
    """The tensors of a message do not have the form that the exchange's ``wire`` prescribes."""


class EndpointError(FedquiltError):
    """The endpoint that writes texts for the server refuses a request, or does not answer with a text."""


class RoundError(FedquiltError):
    """A round cannot be completed; names the round, the clients and the causes."""


def suggestion(word: str, allowed: Sequence[str]) -> str:
    """The text ``" (did you mean 'x'?)"`` for the allowed word that ``word`` means, or an empty string.

    That is what the field also calls so, or else the nearest in spelling, of another name in the field as well.
    """
    if len(word) > 100:
        return ""
    others = {other: name for other, name in _also_called().items() if name in allowed and other not in allowed}
    if word.lower() in others:
        return f" (did you mean '{others[word.lower()]}'?)"
    long = [other for other in others if len(other) > 3]  # short ones are near to everything
    near = get_close_matches(word, [*allowed, *long], n=1, cutoff=0.6)
    return f" (did you mean '{others.get(near[0], near[0])}'?)" if near else ""


@cache
def _also_called() -> dict[str, str]:
    """What fedquilt calls what has another name elsewhere, by that name."""
    path = Path(__file__).parents[1] / "assets" / "also_called.toml"
    return {other: name for name, others in tomllib.loads(path.read_text("utf-8")).items() for other in others}


def written(value: object) -> str:
    """The ``repr`` of a value, or a description where Python refuses to write an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} that holds an integer of thousands of digits"
