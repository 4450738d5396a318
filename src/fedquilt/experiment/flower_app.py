"""Flower apps: writing the folder that ``flwr run`` takes, and running it on a federation.

The two sides of the app only name the run file; all other code is in the installed fedquilt.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import fedquilt
from fedquilt import __version__
from fedquilt.adapters.folders import replace_folder
from fedquilt.config.load import resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RoundError, RunError
from fedquilt.engine.flower.compat import quiet
from fedquilt.engine.flower.processes import tool
from fedquilt.experiment.flower import FAILED, require
from fedquilt.experiment.predictions import lines_of
from fedquilt.record import Record, read_config, read_result

RUN_FILE = (resources.files(fedquilt) / "assets" / "flower-app.toml").read_text(encoding="utf-8")
"""The run file of a new app."""

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A federation of fedquilt."
license = "Apache-2.0"
# Flower may install what stands here before each run. fedquilt {version} and the like are already where flwr runs.
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "fedquilt"
# nothing else in this folder travels to the nodes
fab-include = ["{package}/*.py", "{run_file}"]

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
folder = ""  # of the run, on the machine of the SuperLink; OUTPUT/NAME of the run file if empty
query = ""   # after a vertical run: the active party's file of the rows that all parties predict
out = ""     # the file for these predictions
without = "" # parties that are not asked, separated by commas
"""

_SIDE = '''\
"""The {side}'s side; what it does is in {run_file}."""

from pathlib import Path

from fedquilt.experiment.flower import {maker}

app = {maker}(Path(__file__).parents[1] / "{run_file}")
'''

_README = """\
# {name}

A federation of fedquilt as a Flower app.

    fedquilt check {run_file}     # every mistake at once
    flwr run . --stream        # on this machine, simulated; or `flwr run . NAME` for a SuperLink of yours

All of the run is in `{run_file}`. The run's folder (record, checkpoints, adapters) is made on the machine of the
SuperLink; the log says where. If it holds a run that stopped, `flwr run` goes on with it; for a new run, change `name`
in `{run_file}`. A simulation of more than two nodes: `--federation-config "num-supernodes=6"`.
"""


def write_app(folder: Path, text: str = RUN_FILE, run_file: str = "run.toml") -> Path:
    """Write a Flower app that runs the run file ``text``; returns the path of the run file in it.

    Raises
    ------
    RunError
        if the folder exists and is not empty, or cannot be written.
    ConfigError
        if no Python package can be named after the folder.
    """
    name = folder.absolute().name
    package = re.sub(r"\W", "_", name.lower())
    if not package.isidentifier() or not package.isascii():
        raise ConfigError(f"{folder}: the app's Python package has the folder's name; use letters, digits and '-'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not empty; give a new folder")
    words = {"name": re.sub(r"[^a-z0-9-]", "-", name.lower()), "package": package, "run_file": run_file}
    sides = {"server": "server_app", "client": "site_app"}
    files = {
        "pyproject.toml": _PYPROJECT.format(**words, version=__version__),
        "README.md": _README.format(**words),
        run_file: text,
        f"{package}/__init__.py": f'"""The Flower app {name}."""\n',
        **{f"{package}/{side}_app.py": _SIDE.format(side=side, maker=maker, **words) for side, maker in sides.items()},
    }

    def fill(fresh: Path) -> None:
        (fresh / package).mkdir()
        for file, content in files.items():
            (fresh / file).write_text(content, encoding="utf-8")

    replace_folder(folder.resolve(), fill, "app")
    return folder / run_file


def deploy(config: Config | None, folder: Path, superlink: str, said: Callable[[str], None]) -> None:
    """Run a config on the federation of a SuperLink; without a config, resume the run in ``folder``.

    ``superlink`` is the name of the connection in Flower's own configuration. ``folder`` is the run's folder on the
    SuperLink's machine. ``said`` is called with every line of the run's log.

    Raises
    ------
    RoundError
        if the run failed; gives the cause, with client and round.
    ConfigError
        if Flower is not installed or does not start the run.
    """
    if config is None and read_result(folder) is not None:
        return
    settings = read_config(folder) if config is None else resolved(config)
    if config is not None:
        Record.refuse(folder)
    deployed(settings, {"folder": str(folder.absolute())}, superlink, said)


def deployed(
    settings: Mapping[str, Any], run_config: Mapping[str, str], superlink: str, said: Callable[[str], None]
) -> None:
    """Run an app on the federation of a SuperLink to its end; ``superlink``, ``said`` and errors as for ``deploy``.

    Ctrl-C stops the run there.

    ``settings`` is the run file, and ``run_config`` what Flower tells the ServerApp.
    """
    require("flower", "flwr")
    quiet()
    with tempfile.TemporaryDirectory(prefix="fedquilt-") as made:
        app = Path(made) / "fedquilt-run"
        write_app(app, json.dumps(settings, indent=1), "run.json")
        told = " ".join(f"{name}={json.dumps(value)}" for name, value in run_config.items())
        started = _flwr("run", str(app), superlink, "--run-config", told, "--format", "json")
    run = started.get("run-id")
    if not started.get("success") or run is None:
        raise ConfigError(f"--superlink {superlink}: Flower did not start the run: {_cause(started)}")
    try:
        causes = _followed(str(run), superlink, said)
    except KeyboardInterrupt:  # it would go on without anybody who follows it
        _flwr("stop", str(run), superlink, "--format", "json")
        raise
    status, details = _status(str(run), superlink)
    if status != "finished:completed" or causes:
        words = "; ".join(causes) or f"Flower says {status}: {details or 'no cause given'}"
        raise RoundError(f"{words} (run {run} on {superlink}; all it said: `flwr log {run} {superlink}`)")


def ask(
    run: Path, inputs: Sequence[str], superlink: str, without: Sequence[str], said: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The predictions of a query on the federation of a SuperLink, a dictionary for each row.

    Parameters
    ----------
    run
        The run's folder on this machine, which is the SuperLink's.
    inputs
        The file of the active party's rows.
    superlink
        The name of the connection in Flower's own configuration.
    without
        The labels of parties that are not asked.
    said
        Called with every line of the query's log.

    Raises
    ------
    FedquiltError
        ConfigError if Flower does not start the query, RoundError with its cause if it failed.
    """
    if len(inputs) != 1:
        raise RunError(f"--input: {len(inputs)} are given; give the active party's file, for sites know their own")
    with tempfile.TemporaryDirectory(prefix="fedquilt-") as made:
        out = Path(made) / "predictions.jsonl"
        words = {"query": _absolute(inputs[0]), "out": str(out), "without": ",".join(without)}
        deployed(read_config(run), {"folder": str(run.absolute()), **words}, superlink, said)
        return lines_of(out)


def _absolute(file: str) -> str:
    """The path of a file from anywhere; another source as it is."""
    if Path(file).exists():
        return str(Path(file).absolute())
    label, _, path = file.partition("=")
    return f"{label}={Path(path).absolute()}" if path and Path(path).exists() else file


def _followed(run: str, superlink: str, said: Callable[[str], None]) -> list[str]:
    """Follow a run's log to its end; returns the causes of failure in it."""
    causes = []
    command = [tool("flwr"), "log", run, superlink, "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            text = _plain(line.rstrip())
            _, marked, cause = text.partition(FAILED)
            if marked and cause not in causes:
                causes.append(cause)
            said(text)
    return causes


def _status(run: str, superlink: str) -> tuple[str, str]:
    """The final status of a run, and Flower's details."""
    listed = _flwr("ls", superlink, "--run-id", run, "--format", "json")
    (entry,) = listed.get("runs") or [{"status": "nothing of the run", "status-details": _cause(listed)}]
    return str(entry.get("status")), " ".join(str(entry.get("status-details") or "").split())


def _flwr(*words: str) -> dict[str, Any]:
    """The JSON output of a command of Flower's."""
    done = subprocess.run([tool("flwr"), *words], capture_output=True, text=True)
    try:
        printed = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        printed = {}
    return printed if isinstance(printed, dict) and printed else {"error-message": done.stderr or done.stdout}


def _cause(printed: dict[str, Any]) -> str:
    return " ".join(_plain(str(printed.get("error-message", "no reason given"))).split())


def _plain(text: str) -> str:
    """Text without the escape codes of colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
