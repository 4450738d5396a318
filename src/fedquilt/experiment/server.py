"""The server of a run file that owns a model and data: its rows, its model and its worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from fedquilt.adapters.registry import KINDS
from fedquilt.client.client import Client
from fedquilt.config.groups import Part, server_parts
from fedquilt.config.schema import Config
from fedquilt.config.server import Server
from fedquilt.core.endpoint import Endpoint
from fedquilt.core.errors import ConfigError, DataError, FedquiltError
from fedquilt.core.rng import Rng
from fedquilt.core.server import Questions, ServerModel, Share
from fedquilt.core.texts import whole_texts
from fedquilt.core.types import Layout, Params
from fedquilt.core.worker import Worker
from fedquilt.data.parts import Splits
from fedquilt.data.prompts import Turns
from fedquilt.data.table import Table
from fedquilt.experiment.data import AssignedRows, read
from fedquilt.experiment.data_of_groups import DataSource, naming_groups
from fedquilt.experiment.groups import NO_ROWS, BuiltGroup, EncodedRows, Work, built
from fedquilt.experiment.method import Chosen
from fedquilt.models.endpoint import Writer, key_of, library

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class ServerRows:
    """The rows of the server that are in this process: what it trains on, its test rows, and the public questions."""

    table: Table | None = None
    test: Table | None = None
    questions: Questions = field(default_factory=Questions)

    def assigned(self, part: Part) -> list[tuple[DataSource, AssignedRows]]:
        """The rows as those of a source without clients, all of them the server's."""
        every = _NOTHING if self.table is None else np.arange(len(self.table))
        return [(DataSource((part,), part.config), AssignedRows(self.table, self.test, Splits((), ()), every))]


def server_rows(part: Part, rng: Rng) -> ServerRows:
    """Read the server's public questions, and the rows that it trains and is scored on.

    Raises
    ------
    FedquiltError
        ConfigError or DataError, which name the keys of [server].
    """
    server, rng = _section(part), rng.child("server")
    if server.endpoint is not None:  # it trains on nothing
        return ServerRows(questions=questions_of(part, _public(part, rng)))
    table, test = _read(part, "data" if server.private is None else "private", rng)
    public = table if server.private is None else _public(part, rng)
    return ServerRows(table, test, questions_of(part, public))


def planned_rows(part: Part, rng: Rng) -> ServerRows:
    """The public questions for a plan: those of the source if it is here, or else as many empty ones as the limit."""
    data = _section(part).data
    if not data.source.startswith("hub:"):
        try:
            return ServerRows(questions=questions_of(part, _public(part, rng.child("server"))))
        except DataError:  # a plan does not need the data
            pass
    return ServerRows(questions=Questions(("",) * (data.limit or 0), kind=data.answers))


def questions_of(part: Part, table: Table) -> Questions:
    """The public questions of a table, with their answers if it has completions; with ``chat`` what the user says.

    Raises
    ------
    DataError
        if ``chat`` is asked for and a conversation has more than a user's turn.
    """
    server, answers = _section(part), None if table.targets is None else tuple(table.targets)
    texts = table.texts if table.turns is None or not server.chat else [_said(turns) for turns in table.turns]
    return Questions(tuple(texts), answers, server.data.answers)


def _said(turns: Turns) -> str:
    """What the user says in a conversation of one turn."""
    if [role for role, _ in turns] != ["user"]:
        roles = ", ".join(role for role, _ in turns)
        raise DataError(
            f"server.chat = true: a public question is one turn of the user, and a conversation of server.data has "
            f"the turns {roles}; write it as one text, or set server.chat = false"
        )
    return turns[0][1]


def questions_columns(server: ServerModel | None) -> list[Params]:
    """The server's questions and answers as columns, for a digest; empty if it owns no model."""
    columns = []
    for texts in () if server is None else (server.questions.texts, server.questions.answers or ()):
        columns.append(whole_texts(texts))
    return columns


def server_group(
    part: Part, work: Work, rows: ServerRows, rng: Rng, *, planned: bool
) -> tuple[BuiltGroup, ServerModel]:
    """The server as a group without clients, and what a method is given of it.

    Parameters
    ----------
    part
        The server's config.
    work
        The model of its architecture, with adapters.
    rows
        Its rows in this process.
    rng
        The run's random stream.
    planned
        Whether shapes are all that is wanted.
    """
    group = built(part, work, (), EncodedRows(None if planned else rows.assigned(part)), rng).group
    model = ServerModel(work.bench.layout, work.put.start, group.server, rows.questions, _section(part).share)
    return group, model


def endpoint_server(endpoint: Endpoint, rows: ServerRows, share: Share, *, asks: bool) -> ServerModel:
    """What a method is given of a server whose texts an endpoint writes.

    Parameters
    ----------
    endpoint
        The endpoint.
    rows
        The public questions in this process.
    share
        Which texts of a client may be sent.
    asks
        Whether the endpoint may be asked; otherwise every text is empty.
    """
    writer = Writer(endpoint, asks)
    layout = Layout(writer.profile.architecture, 0, {}, {})
    return ServerModel(layout, lambda rng: {}, cast(Worker, writer), rows.questions, share, texts_only=True)


def refuse_unusable(config: Config) -> None:
    """Raise ConfigError if the server's texts are those of an endpoint that cannot be asked from here."""
    if config.server is not None and config.server.endpoint is not None:
        library()
        key_of(config.server.endpoint)


def endpoint_record(config: Config) -> dict[str, Any]:
    """What the record says of an endpoint: who wrote the server's texts, and that it need not do so again."""
    endpoint = None if config.server is None else config.server.endpoint
    return {} if endpoint is None else {"endpoint": {"url": endpoint.url, "name": endpoint.name, "reproducible": False}}


def students_of(groups: Sequence[BuiltGroup]) -> dict[str, Client]:
    """The server's own client for each architecture of the clients, without rows."""
    first = {group.architecture: group.server for group in reversed(groups)}
    return {name: replace(client, train=NO_ROWS, splits={}) for name, client in first.items()}


def odd_server(config: Config, method: Chosen) -> list[str]:
    """Problems of [server] with the method: one that uses no server, or one that needs it, and with its adapters."""
    name, needed = method.name, method.traits.needs_server
    if config.server is None:
        problem = (
            f"server: missing; method.name = '{name}' needs a server that owns a model and data: give [server.model] "
            "and [server.data]"
        )
        return [problem] if needed else []
    problems = []
    if not needed:
        given = ", ".join(f"server.{key}" for key in Server.model_fields if key in config.server.model_fields_set)
        problems.append(
            f"{given}: no effect with method.name = '{name}', whose server has no model of its own; leave [server] out"
        )
    if config.server.endpoint is not None and needed and not method.traits.server_texts:
        problems.append(
            f"server.endpoint: method.name = '{name}' needs a model of the server's own, and an endpoint only writes "
            "texts; give [server.model] in its place"
        )
    for part in server_parts(config):
        kind = part.config.adapter.kind
        if KINDS[kind].needs_public:
            problems.append(
                f"server: adapter.kind = '{kind}' is of clients that share coordinates, and the server's model shares "
                "none with them; set server.adapter.kind = 'lora'"
            )
    return problems


def _section(part: Part) -> Server:
    server = part.config.server
    assert server is not None, "the server's part comes of a config with [server]"
    return server


def _of_questions(part: Part) -> Part:
    """The part whose data are the public questions."""
    return replace(part, config=part.config.model_copy(update={"data": _section(part).data}))


def _public(part: Part, rng: Rng) -> Table:
    """The public questions as rows."""
    public = _of_questions(part)
    return _read(public, "data", rng if _section(part).private is None else rng.child("questions"))[0]


def _read(part: Part, key: str, rng: Rng) -> tuple[Table, Table | None]:
    """The rows and test rows of the part's data, which are ``server.<key>`` in the run file."""
    try:
        with naming_groups(part):
            table, test = read(part.config, rng)
    except ConfigError as error:
        raise ConfigError([_keyed(problem, key) for problem in error.problems]) from error
    except FedquiltError as error:
        raise type(error)(_keyed(str(error), key)) from error
    assert table is not None, "the server's rows are of one source"
    return table, test


def _keyed(problem: str, key: str) -> str:
    return problem.replace("server.data.", f"server.{key}.")
