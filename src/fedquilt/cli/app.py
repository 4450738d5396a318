"""Entry point of the command: its subcommands, and the handling of errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fedquilt import __version__
from fedquilt.cli import (
    check,
    compare,
    demo,
    doctor,
    evaluate,
    examples,
    export,
    init,
    methods,
    new,
    plan,
    predict,
    pretrain,
    report,
    run,
    schema,
    site,
    watch,
)
from fedquilt.cli.help_text import Command
from fedquilt.cli.screen import errors
from fedquilt.core.collector import spare
from fedquilt.core.errors import ConfigError, FedquiltError

app = typer.Typer(
    name="fedquilt",
    help="Federated fine-tuning of foundation models across heterogeneous clients.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    demo.demo,
    init.init,
    examples.examples,
    run.run,
    check.check,
    plan.plan,
    compare.compare,
    methods.methods,
    schema.schema,
    report.report,
    report.plot,
    watch.watch,
    export.export,
    predict.predict,
    evaluate.evaluate,
    new.new,
    doctor.doctor,
):
    app.command(cls=Command)(command)
app.add_typer(pretrain.app, name="pretrain")
app.add_typer(site.app, name="site")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedquilt {__version__}")
        raise typer.Exit


@app.callback()
def _frame(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Federated fine-tuning of foundation models across heterogeneous clients."""


def main() -> None:
    """Run the command; print an error as text with exit code 1, and a traceback only with ``--debug``."""
    if "torch" not in sys.modules:  # read when it is loaded: waiting threads sleep, which leaves others the processors
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        spare()
    debug = "--debug" in sys.argv
    if debug:  # anywhere on the line, not only before the subcommand
        sys.argv.remove("--debug")
    try:
        app(prog_name="fedquilt")
    except Exception as error:
        if debug:
            raise
        for problem in _problems(error):
            errors.print(f"error: {problem}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _problems(error: Exception) -> tuple[str, ...]:
    """Return the texts of an error, or advice for an unexpected one."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, FedquiltError):
        return (str(error),)
    if isinstance(error, OSError) and error.filename is not None:
        return (f"{error.filename}: {error.strerror}",)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return (f"unexpected {type(error).__name__}: {first}; rerun with --debug for the traceback, and report it",)
