"""The public questions of a round, which the server draws and may send to its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.server import ServerModel, ServerState, server_order
from fedquilt.core.types import Params


class Drawn(NamedTuple):
    """Public questions of a round: their numbers, increasing, their texts, and their answers (empty if not known)."""

    numbers: list[int]
    questions: list[str]
    answers: list[str]


TAKEN: Final = "taken"
"""The key, in a client's order settings and in the state, under which a wrapper says which of the drawn questions may
be learned from: their positions, and in the state those by client. Without it all may."""


OFFER: Final = "offer"
"""The key in the state under which a wrapper keeps what the server has written for the drawn questions of the round: a
mapping with the texts under ``paths``. Without it a method has the server write them."""


class OfferedState(TypedDict, total=False):
    """What a wrapper may add to the state of a method for whose questions the server writes, see ``OFFER``."""

    offer: Mapping[str, Any] | None


class _Taken(TypedDict, total=False):
    taken: dict[str, list[int]]


class DrawnState(_Taken):
    """The state of a method whose server and clients teach each other along drawn questions.

    Attributes
    ----------
    params
        The clients' adapters, by architecture; those that training starts from where each client keeps its own.
    server
        The server's own model.
    told
        Numbers about the last round, for its record.
    taken
        What a wrapper may add, see ``TAKEN``: the positions of the questions that the server may learn of each client.
    """

    params: Params
    server: ServerState
    told: dict[str, float]


def allowed(taken: Sequence[int] | None, count: int) -> Tensor:
    """Whether each of so many drawn questions may be learned from, (questions,)."""
    if taken is None:
        return torch.ones(count, dtype=torch.bool)
    found = torch.zeros(count, dtype=torch.bool)
    found[torch.tensor(list(taken), dtype=torch.long)] = True
    return found


def drawn(server: ServerModel, own: ServerState, count: int) -> Drawn:
    """Questions of the round that comes for the server's state, drawn without replacement; the same at every call."""
    public, rng = server.questions, server_order(own, "offer").rng.child("questions")
    chosen = rng.numpy().permutation(len(public.texts))[:count]
    numbers = sorted(int(number) for number in chosen)
    answers = [public.answers[number] for number in numbers] if public.answers is not None else []
    return Drawn(numbers, [public.texts[number] for number in numbers], answers)


def server_of(federation: Federation, name: str, *, answered: str = "", trains: bool = True) -> ServerModel:
    """The server's model and data, or ConfigError if there is none.

    Parameters
    ----------
    federation, name
        The federation, and the method's name for messages.
    answered
        Why the public questions need answers; empty if they do not.
    trains
        Whether the server trains on its own rows.

    Raises
    ------
    ConfigError
        if the server has no model, or lacks rows or answers.
    """
    server = federation.server
    if server is None:
        raise ConfigError(
            f"method.name = '{name}' needs a server that owns a model and data: give [server.model] and [server.data]"
        )
    if trains and not server.texts_only and not server.worker.profile.num_examples:
        raise ConfigError("server: has no rows with completions to train on; give [server.private]")
    if answered and server.questions.texts and server.questions.answers is None:
        raise ConfigError(f"{answered}, and the questions of server.data have no answers")
    return server
