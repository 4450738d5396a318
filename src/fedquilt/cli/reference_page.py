"""The reference page of all commands, generated from the commands themselves.

``python -m fedquilt.cli.reference_page > docs/commands.md`` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
from typer.main import get_command

from fedquilt.cli.app import app

HEAD = """# Commands

Every command prints this help behind `--help`, and takes `--debug`, which shows the traceback of an error. A
`KEY=VALUE` is a key of [the run file](run-file.md), as in `training.steps=5`.

This page is generated from the commands (`python -m fedquilt.cli.reference_page`), and a test compares the two.
"""


def page() -> str:
    """The page: for each command how it is written, what it does, and a table of its arguments and options."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands().items())])


def commands() -> dict[str, click.Command]:
    """Every command by what is typed: ``fedquilt run``, ``fedquilt site certs``."""
    return dict(_below("fedquilt", get_command(app)))


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for own, member in command.commands.items():
            yield from _below(f"{name} {own}", member)
    else:
        yield name, command


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    params = [param for param in command.get_params(context) if "--help" not in param.opts]
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    about = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    rows = [f"| {_name(param, context)} | {_default(param, context)} | {_about(param)} |" for param in params]
    table = ["| | default | |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## {name}\n", f"```text\n{usage}\n```\n", f"{about}\n", *table])


def _name(param: click.Parameter, context: click.Context) -> str:
    if isinstance(param, click.Option):
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
        return names if param.is_flag else f"{names} {param.make_metavar(context)}"
    name = param.make_metavar(context)
    return f"`{name[1:-1] if not param.required and name.startswith('[') else name}`"


def _default(param: click.Parameter, context: click.Context) -> str:
    value = param.get_default(context)
    if param.required:
        return "needed"
    if isinstance(param, click.Option) and param.is_flag:
        return f"`{(param.opts if value else param.secondary_opts)[0]}`" if param.secondary_opts else ""
    return "" if value is None or value == () else f"`{value}`"


def _about(param: click.Parameter) -> str:
    text = " ".join((getattr(param, "help", None) or "").split()).replace("|", r"\|")
    return f"{text} May be repeated." if param.multiple and "repeated" not in text else text


if __name__ == "__main__":
    print(page(), end="")
