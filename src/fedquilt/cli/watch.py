"""``fedquilt watch``."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import errors, out
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.shell import install_extra

PORT = 8712
"""The port that is taken if it is free and no other is asked for."""


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; they need not exist yet.")],
    host: Annotated[str, typer.Option(help="Address to listen at; others than 127.0.0.1 let other machines read.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help=f"Port; {PORT} if left out, or any if that is taken; 0 is any."),
    ] = None,
    until_done: Annotated[bool, typer.Option("--until-done", help="End once all runs are finished.")] = False,
) -> None:
    """Show the report page of runs in a browser, and keep it up to date while they go on. Ctrl-C ends it."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"fedquilt watch: needs {' and '.join(missing)}; install with `{install_extra('watch')}`")
    from fedquilt.report.following import FINISHED, Following, Seen
    from fedquilt.report.guard import is_loopback
    from fedquilt.report.live import serve

    following = Following(runs)
    listening = _listening(host, port)
    taken = listening.getsockname()[1]
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(
        host, f"[{host}]" if ":" in host else host
    )
    _say(f"http://{shown}:{taken}/ shows the report; Ctrl-C ends it, and leaves the run alone")
    if not is_loopback(host):
        _say(
            f"warning: everyone who can reach port {taken} of this machine can read the report, without a password: "
            "names and class counts of clients, scores and configs; leave --host out to keep it on this machine"
        )

    def told(seen: Seen) -> None:
        stays = "; the page stays until Ctrl-C" if seen.state == FINISHED and not until_done else ""
        errors.print(f"{seen.text}{stays}", markup=False, highlight=False, soft_wrap=True)

    try:
        serve(following, listening, host, told=told, until_done=until_done)
    except KeyboardInterrupt:
        _say("stopped watching")


def _listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens; another port than the usual one is taken only if none was asked for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        try:
            return socket.create_server((host, PORT if port is None else port), family=family)
        except OSError:
            if port is not None:
                raise
            return socket.create_server((host, 0), family=family)
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise RunError(
            f"fedquilt watch cannot listen at {where}: {error.strerror or error}; give another --port, or 0 for any "
            "that is free, and as --host an address of this machine"
        ) from error


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
