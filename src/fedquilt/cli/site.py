"""``fedquilt site``: keys and certificates of a federation between real sites, and a trial on this machine."""

from __future__ import annotations

import math
import shlex
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fedquilt.cli.help_text import Command
from fedquilt.cli.screen import out, show_json
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.core.shell import command, install_extra

app = typer.Typer(
    help="Set up a federation of real sites on Flower, or a trial.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _frame() -> None:
    """Set up a federation of real sites on Flower, or a trial."""


@app.command(cls=Command)
def certs(
    folder: Annotated[Path, typer.Option("--out", help="Folder for keys and certificates.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Host name or address of the server as nodes use it; may be repeated.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Name of a node to make a key for; may be repeated.")] = None,
    nodes: Annotated[int, typer.Option(help="Make keys for this many nodes node-0, node-1, ... (for a trial).")] = 0,
    renew: Annotated[bool, typer.Option("--renew", help="Replace the server's certificate and key.")] = False,
) -> None:
    """Make the certificates of the server (--host, by the operator) or the key of a node (--node, by each site)."""
    _require("certs")
    from fedquilt.engine.flower import certs as made

    names = [*(node or []), *(f"node-{number}" for number in range(nodes))]
    if not host and not names:
        raise ConfigError("give --host (for the operator), or --node or --nodes (for each organisation)")
    if renew and not host:
        raise ConfigError("--renew: give every --host of the new server certificate")
    if host:
        known = (folder / "ca.crt").exists()
        if not known:
            made.authority(folder)
        server = made.server_certificate(folder, host, renew=renew)
        _say(f"{folder / 'ca.key'}: {'unchanged; ' if known else ''}stays with the operator, best offline")
        _say(f"{folder / 'ca.crt'}: goes to every organisation (until {made.valid_until(folder / 'ca.crt'):%Y-%m-%d})")
        until = made.valid_until(server.public)
        _say(f"{server.key}, {server.public}: on the SuperLink's machine (until {until:%Y-%m-%d})")
    for name in names:
        key = made.node_key(folder, name)
        _say(f"{key.key}: stays with the organisation that runs {name}; whoever has it can act as that node")
        _say(f"{key.public}: goes to the operator, who registers it")
    if host:
        ca, crt, key_file = (shlex.quote(str(folder / name)) for name in ("ca.crt", "server.crt", "server.key"))
        _say("\nnext, on the SuperLink's machine (docs/guide/flower.md explains the filter that must protect it):")
        _say(
            f"  flower-superlink --ssl-ca-certfile {ca} --ssl-certfile {crt} --ssl-keyfile {key_file} "
            "--enable-supernode-auth --database state.db --disable-runtime-dependency-installation"
        )
    for name in names:
        _say(f"\nnext, for {name}: the operator, then the organisation")
        _say(f"  flwr supernode register {shlex.quote(str(folder / name) + '.pub')} CONNECTION")
        _say(
            f"  flower-supernode --superlink {host[0] if host else 'HOST'}:PORT --root-certificates "
            f"{shlex.quote(str(folder / 'ca.crt'))} --auth-supernode-private-key {shlex.quote(str(folder / name))} "
            "--node-config 'partition-id=NUMBER'"
        )


@app.command(cls=Command)
def up(
    nodes: Annotated[int, typer.Option(help="Number of SuperNodes; node i gets partition i.")] = 3,
    folder: Annotated[Path, typer.Option(help="Folder for keys, logs and client memories.")] = Path("site"),
    insecure: Annotated[bool, typer.Option("--insecure", help="Run without TLS and node authentication.")] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Total epsilon that each client may spend under local privacy.")
    ] = None,
) -> None:
    """Start a federation on this machine, over TLS with node authentication; Ctrl-C ends it."""
    _require("up")
    from fedquilt.engine.flower.compat import QUIET
    from fedquilt.engine.flower.local_config import CONNECTION
    from fedquilt.engine.flower.local_federation import Trial
    from fedquilt.engine.flower.processes import tail

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its processes must end with it, whoever ends it
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ConfigError(f"--epsilon {epsilon}: give a number above 0")
    began = time.monotonic()
    try:
        own = {} if epsilon is None else {"epsilon": epsilon}
        with Trial(folder, nodes, secure=not insecure, node_config=own) as trial:
            trial.ready()
            safety = "without TLS" if insecure else "TLS, node authentication"
            count = f"{nodes} SuperNode{'s are' if nodes > 1 else ' is'} online"
            _say(f"{count} at {trial.address} ({safety}) after {time.monotonic() - began:.0f} s; in another terminal:")
            quiet = " ".join(f"{name}={value}" for name, value in QUIET.items() if name.startswith("FLWR"))
            _say(f"  export FLWR_HOME={shlex.quote(str(trial.home))} {quiet}")
            _say(f"  flwr run APP {CONNECTION} --stream")
            _say(f"  flwr supernode list {CONNECTION}")
            _say(f"logs: {trial.folder / 'logs'}; Ctrl-C ends it")
            reported: set[str] = set()
            while True:
                time.sleep(1)
                for process in trial.ended():
                    if process.name == "superlink":
                        raise FedquiltError(f"superlink ended: {tail(process)}")
                    if process.name not in reported:
                        reported.add(process.name)
                        _say(f"{process.name} ended: {tail(process)}")
    except KeyboardInterrupt:
        _say(f"ended; everything is kept in {folder}; continue with: {command('site', 'up', '--folder', folder)}")
        raise typer.Exit(130) from None


@app.command(cls=Command)
def status(
    memories: Annotated[
        Path | None, typer.Option(help="The node's folder of client memories; ~/.fedquilt/sites if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the epsilon that each client has spent under local privacy, its allowance, and the queries it answered."""
    from fedquilt.privacy.answers import all_answers
    from fedquilt.privacy.ledger import ledgers

    folder = memories or Path.home() / ".fedquilt" / "sites"
    if not folder.is_dir():
        raise ConfigError(
            f"--memories {folder}: no such folder; give the folder that the node's config sets as memories"
        )
    found, answers = ledgers(folder), all_answers(folder)
    if as_json:
        show_json({"memories": str(folder), "clients": found, "answers": answers})
        return
    if not found:
        _say(f"{folder}: no client has answered a run with privacy.mode = 'local'")
    for name, account in found.items():
        _say(f"{name}: {_spent(account)}")
    for name, account in answers.items():
        _say(f"{name}: {_answered(account)}")


def _spent(account: dict[str, Any]) -> str:
    """Return the epsilon that a client has spent, in words."""
    runs, replies = account["runs"], account["releases"]
    said = f"{replies} repl{'y' if replies == 1 else 'ies'} in {runs} run{'' if runs == 1 else 's'}"
    spent = "unbounded (a reply without noise)" if account["spent"] is None else f"epsilon {account['spent']:.4g}"
    if account["epsilon"] is None:
        return (
            f"{said}, {spent}; no allowance (the run file had no noise); set one with epsilon=... in the node's config"
        )
    left = "" if account["spent"] is None else f", {max(0.0, account['epsilon'] - account['spent']):.4g} left"
    origin = "set by the site" if account["by"] == "site" else "set by the first run file; the node's config can set it"
    return f"{said}, {spent} of {account['epsilon']:.4g} at delta {account['delta']:g}{left} ({origin})"


def _answered(account: dict[str, Any]) -> str:
    """Return which queries a client has answered, in words."""
    count, runs, rows = account["answers"], account["runs"], account["rows"]
    said = (
        f"{count} quer{'y' if count == 1 else 'ies'} answered after {runs} run{'' if runs == 1 else 's'}, about {rows} "
        f"rows, at most {account['answers_about_a_row']} about one row"
    )
    if account["epsilon_of_a_row"] is None:
        return f"{said}; without noise on embeddings, so that their epsilon has no bound"
    return f"{said}; epsilon of a row in them {account['epsilon_of_a_row']:.4g} at delta {account['delta']:g}"


def _require(name: str) -> None:
    missing = [name for name in ("flwr", "cryptography") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"fedquilt site {name}: needs {' and '.join(missing)}; install it with: {install_extra('flower')}"
        )


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
