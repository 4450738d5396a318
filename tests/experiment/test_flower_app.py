"""``fedquilt new`` and runs on a SuperLink: what is written, what is refused, and how a failure comes back."""

from __future__ import annotations

import json
import os
import runpy
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, RoundError, RunError
from fedquilt.experiment import flower_app
from fedquilt.experiment.check import check
from fedquilt.experiment.flower_app import RUN_FILE, deploy, write_app


def test_the_example_is_a_run_file_without_problems(tmp_path):
    made = write_app(tmp_path / "my-Trial 2")
    assert made.read_text() == RUN_FILE
    assert check(load(made)[0]) == []
    project = tomllib.loads((tmp_path / "my-Trial 2" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-trial-2"
    assert project["project"]["dependencies"] == []
    components = project["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "my_trial_2.server_app:app", "clientapp": "my_trial_2.client_app:app"}


def test_flower_takes_the_app_with_nothing_in_it_but_code_and_run_file(tmp_path):
    pytest.importorskip("flwr")
    from zipfile import ZipFile

    from flwr.cli.build import build_fab_from_disk

    write_app(tmp_path / "trial")
    (tmp_path / "trial" / "patients.json").write_text("[]")
    (tmp_path / "fab").write_bytes(build_fab_from_disk(tmp_path / "trial"))
    names = {name for name in ZipFile(tmp_path / "fab").namelist() if not name.startswith(".info")}
    assert names == {
        *("pyproject.toml", "run.toml"),
        *(f"trial/{name}.py" for name in ("__init__", "server_app", "client_app")),
    }


def test_the_two_sides_are_apps_of_flower(tmp_path):
    pytest.importorskip("flwr")
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    write_app(tmp_path / "trial")
    sides = {
        name: runpy.run_path(str(tmp_path / "trial" / "trial" / f"{name}.py")) for name in ("server_app", "client_app")
    }
    assert isinstance(sides["server_app"]["app"], ServerApp)
    assert isinstance(sides["client_app"]["app"], ClientApp)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [("full", RunError, "exists and is not empty"), ("2nd", ConfigError, "package has the folder's name")],
)
def test_a_folder_that_will_not_do_is_refused_and_left_alone(name, error, said, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(error, match=said):
        write_app(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_the_command_makes_an_app_of_a_run_file_and_checks_it_first(command, tiny, tmp_path):
    said = command("new", "trial", "--run-file", "tiny.toml")
    assert said.code == 0
    assert (tmp_path / "trial" / "run.toml").read_text() == tiny.read_text()
    assert "flwr run trial --stream" in said.out
    tiny.write_text("rounds = 0\n")
    said = command("new", "other", "--run-file", "tiny.toml")
    assert said.code == 1
    assert "rounds = 0" in said.err
    assert not (tmp_path / "other").exists()


# A federation, as far as this side of it goes: Flower's command is played by a script --------------------------------

FLWR = """\
#!{python}
import json, pathlib, re, sys
words = sys.argv[1:]
with open({told!r}, "a") as told:
    told.write(json.dumps(words) + "\\n")
if words[0] == "run":
    app = pathlib.Path(words[1])
    pathlib.Path({told!r} + ".run").write_text((app / "run.json").read_text())
    asked = re.search('out="([^"]*)"', words[words.index("--run-config") + 1])
    if asked:
        pathlib.Path(asked.group(1)).write_text(json.dumps({{"row": 0, "class": "yes", "probability": 0.75}}) + "\\n")
    print("Successfully started run 7")
    print(json.dumps({start}))
elif words[0] == "log":
    print({log!r})
else:
    print(json.dumps({{"success": True, "runs": [{{"run-id": "7", "status": {status!r}, "status-details": {why!r}}}]}}))
"""


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """``flwr(...)``: puts a command in place of Flower's; gives the file in which it writes what it is told."""
    pytest.importorskip("flwr")

    def put(start=None, log="", status="finished:completed", why="N/A"):
        told, script = tmp_path / "told", tmp_path / "flwr"
        start = {"success": True, "run-id": "7"} if start is None else start
        script.write_text(
            FLWR.format(python=sys.executable, told=str(told), start=start, log=log, status=status, why=why)
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(flower_app, "tool", lambda name: str(script))
        return told

    return put


def test_a_run_goes_to_the_superlink_with_every_key_and_its_folder(flwr, config, tmp_path):
    told, said = flwr(log="fedquilt: round 1 of 3"), []
    deploy(config("training.steps=1"), tmp_path / "runs" / "mine", "trial", said.append)
    first, second, third = [json.loads(line) for line in told.read_text().splitlines()]
    assert first[0] == "run"
    assert first[2:] == ["trial", "--run-config", f'folder="{tmp_path / "runs" / "mine"}"', "--format", "json"]
    assert second == ["log", "7", "trial", "--stream"]
    assert third == ["ls", "trial", "--run-id", "7", "--format", "json"]
    sent = json.loads((tmp_path / "told.run").read_text())
    assert sent["training"]["steps"] == 1
    assert said == ["fedquilt: round 1 of 3"]


def test_a_run_that_nobody_follows_any_more_is_stopped_at_the_superlink(flwr, config, tmp_path, monkeypatch):
    told = flwr()

    def interrupted(run, superlink, said):
        raise KeyboardInterrupt

    monkeypatch.setattr(flower_app, "_followed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(config("training.steps=1"), tmp_path / "runs" / "mine", "trial", print)
    assert json.loads(told.read_text().splitlines()[-1]) == ["stop", "7", "trial", "--format", "json"]


def test_a_query_goes_to_the_superlink_and_its_predictions_come_back(flwr, command, finished, tmp_path, monkeypatch):
    told = flwr(log="fedquilt: party 'shop' is missing: away")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.csv").write_text("income\n1\n")
    words = ("predict", finished, "--superlink", "trial", "--input")
    said = command(*words, "bank=new.csv", "--without", "shop", "--without", "insurer")
    assert said.out == "row,class,probability\n0,yes,0.75\n"
    assert "party 'shop' is missing: away" in said.err
    run_config = json.loads(told.read_text().splitlines()[0])[4]
    wanted = f'folder="{finished}" query="bank={tmp_path / "new.csv"}" out="'
    assert run_config.startswith(wanted)
    assert run_config.endswith('predictions.jsonl" without="shop,insurer"')
    assert command(*words, "new.csv", "--out", tmp_path / "found.jsonl").code == 0
    assert json.loads((tmp_path / "found.jsonl").read_text()) == {"row": 0, "class": "yes", "probability": 0.75}
    assert "--client: has no effect with --superlink" in command(*words, "new.csv", "--client", "0").err
    assert "--input: 2 are given" in command(*words, "new.csv", "--input", "other.csv").err


@pytest.mark.parametrize(
    ("played", "error", "text"),
    [
        (
            {
                "log": f"\x1b[91mERROR\x1b[0m : {flower_app.FAILED}round 3, exchange 'fit': client 2: no reply within 9 s"  # noqa: E501
            },
            RoundError,
            "^round 3, exchange 'fit': client 2: no reply within 9 s (run 7 on trial; all it said: `flwr log 7",
        ),
        (
            {"status": "finished:failed", "why": "No heartbeat received from the task"},
            RoundError,
            "^Flower says finished:failed: No heartbeat received from the task (run 7 on",
        ),
        ({"start": {"success": False, "error-message": "no such connection"}}, ConfigError, "no such connection"),
    ],
)
def test_a_failure_is_loud_and_has_a_cause(flwr, config, tmp_path, played, error, text):
    flwr(**played)
    with pytest.raises(error) as caught:
        deploy(config(), tmp_path / "runs", "trial", lambda line: None)
    wanted = text.strip("^$")
    assert str(caught.value).startswith(wanted) if text.startswith("^") else wanted in str(caught.value)


def test_the_command_ends_with_1_and_the_cause(flwr, command, tiny):
    flwr(log=f"{flower_app.FAILED}round 1, exchange 'fit': client 0: loss is nan")
    said = command("run", "tiny.toml", "--engine", "flower", "--superlink", "trial")
    assert said.code == 1
    assert "error: round 1, exchange 'fit': client 0: loss is nan" in said.err


def test_a_finished_run_is_left_alone_and_another_ones_folder_too(flwr, config, finished, tmp_path):
    told = flwr()
    deploy(None, finished, "trial", lambda line: None)
    with pytest.raises(RunError, match="not empty"):
        deploy(config(), finished, "trial", lambda line: None)
    assert not told.exists()


@pytest.mark.slow
def test_flwr_run_completes_on_a_new_app(tmp_path):
    pytest.importorskip("ray")
    from fedquilt.engine.flower.compat import QUIET
    from fedquilt.engine.flower.processes import tool

    around = {**os.environ, **QUIET, "FLWR_HOME": str(tmp_path / "flower")}
    around["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{around['PATH']}"
    write_app(tmp_path / "trial")
    try:
        done = subprocess.run(
            [tool("flwr"), "run", "trial", "--stream"],
            capture_output=True, text=True, cwd=tmp_path, env=around, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "runs" / "run" / "result.json").exists(), done.stdout + done.stderr
    finally:  # the daemon that `flwr run` starts and leaves behind
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = str(tmp_path).encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if ours and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def test_the_file_of_a_query_is_named_from_anywhere(tmp_path, monkeypatch):
    told = []

    def deployed(settings, run_config, superlink, said):
        told.append(run_config["query"])
        Path(run_config["out"]).write_text("")

    monkeypatch.setattr(flower_app, "deployed", deployed)
    monkeypatch.setattr(flower_app, "read_config", lambda run: {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.csv").touch()
    (tmp_path / "day=3.csv").touch()
    for given in ("new.csv", "bank=new.csv", "day=3.csv", "bank=day=3.csv", "sklearn:digits"):
        assert flower_app.ask(tmp_path / "run", [given], "fl", (), print) == []
    here = Path.cwd()
    named = [here / "new.csv", f"bank={here / 'new.csv'}", here / "day=3.csv", f"bank={here / 'day=3.csv'}"]
    assert told == [*map(str, named), "sklearn:digits"]
