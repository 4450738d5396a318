"""What fedquilt tells the user when something cannot go on.

An error of this family is a finished message: it names the key or file, shows the value, says what is allowed
and what to do next. The command prints it and exits non-zero; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class FedquiltError(Exception):
    """The base of every error whose text is meant for the user."""


class ConfigError(FedquiltError):
    """The run file is wrong; carries every problem that was found, not only the first."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(FedquiltError):
    """The data cannot be read, or cannot be split as asked."""


class ModelError(FedquiltError):
    """The model cannot be loaded, or has no shape that fedquilt can work with."""


class RunError(FedquiltError):
    """The run folder cannot be made, written, read or resumed."""


class TrainingError(FedquiltError):
    """One client's local training went wrong; the client's update is dropped and the round goes on."""


class WireError(FedquiltError):
    """The tensors of a message are not in the form in which they should have travelled."""


class RoundError(FedquiltError):
    """A round cannot be completed; names the round, the clients and the causes."""


def suggestion(word: str, allowed: Sequence[str]) -> str:
    """``" (did you mean 'x'?)"`` for the allowed word nearest to ``word``, or an empty string."""
    if len(word) > 100:
        return ""
    near = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def written(value: object) -> str:
    """``repr``, also of integers of thousands of digits and of what holds one, which Python does not write."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} that holds an integer of thousands of digits"
