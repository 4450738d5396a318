"""Errors whose text is meant for the user.

The message of such an error is complete: it names the key or file, shows the value, says what is allowed and what to
do next. The command prints it and exits with a non-zero code; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


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


class WireError(FedquiltError):
    """The tensors of a message do not have the form that the exchange's ``wire`` prescribes."""


class EndpointError(FedquiltError):
    """The endpoint that writes texts for the server refuses a request, or does not answer with a text."""


class RoundError(FedquiltError):
    """A round cannot be completed; names the round, the clients and the causes."""


_ALSO_CALLED = {
    "averaging": "mean",
    "batch": "batch_size",
    "causal-language-modeling": "causal-lm",
    "classification": "sequence-classification",
    "client_fraction": "cohort",
    "clients_per_round": "cohort",
    "dataset": "source",
    "fedavg": "fedit",
    "fraction_fit": "cohort",
    "krum": "median",
    "language-modeling": "causal-lm",
    "local": "local-only",
    "local_epochs": "epochs",
    "local_steps": "steps",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "rank",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "max_grad_norm": "clip_norm",
    "max_seq_length": "max_length",
    "model_name_or_path": "name",
    "mu": "proximal",
    "non-iid": "dirichlet",
    "num_epochs": "epochs",
    "num_rounds": "rounds",
    "r": "rank",
    "random": "iid",
    "target_modules": "targets",
    "text-classification": "sequence-classification",
    "text-generation": "causal-lm",
    "uniform": "iid",
    "vfl": "proto-evfl",
}
"""What elsewhere is the name of something that has another one here."""


def suggestion(word: str, allowed: Sequence[str]) -> str:
    """The text ``" (did you mean 'x'?)"`` for the allowed word that ``word`` means, or an empty string.

    That is what the field also calls so, or else the nearest in spelling.
    """
    if len(word) > 100:
        return ""
    known = _ALSO_CALLED.get(word.lower())
    near = [known] if known in allowed else get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def written(value: object) -> str:
    """The ``repr`` of a value, or a description where Python refuses to write an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} that holds an integer of thousands of digits"
