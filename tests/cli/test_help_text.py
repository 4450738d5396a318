"""Every command's help page says what each of its arguments and options is."""

import click
import pytest
import typer

from fedquilt.cli.app import app


def commands(command, path=("fedquilt",)):
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_text_and_brackets_are_as_they_are(name):
    command = COMMANDS[name]
    context = click.Context(command, info_name=name)
    page = command.get_help(context)
    assert "\\[" not in page
    assert page.lower().count("arguments:\n") <= 1
    for param in command.get_params(context):
        assert param.help, f"{name}: {param.name} has no text"
        assert param.help.split()[0] in page


def test_the_commands_are_found():
    assert {"fedquilt run", "fedquilt compare", "fedquilt site certs", "fedquilt pretrain glyphs"} <= COMMANDS.keys()
    assert "[required]" in COMMANDS["fedquilt compare"].get_help(click.Context(COMMANDS["fedquilt compare"]))
