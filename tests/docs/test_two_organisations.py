"""The page of two organisations is carried out: keys, SuperLink, two nodes, a run that is stopped and goes on."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks, commands

from fedquilt.engine.flower.processes import Started, free_port, listening, patience, tool, wait_for

PAGE = ROOT / "docs" / "guide" / "two-organisations.md"
PORTS = ("8000", "9094", "9095")


@pytest.fixture
def terminal(tmp_path):
    """The environment of every terminal, in a folder of its own, with ports that are free."""
    pytest.importorskip("flwr")
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(tool("flwr")).parent), os.environ["PATH"]]),
        "PWD": str(tmp_path),
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def shell(command, folder, environment):
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=patience(300)
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def online(folder, environment):
    return shell("flwr supernode list fl", folder, environment).count("online")


def stopped_after_a_round(command, folder, environment):
    """Begin a run and press Ctrl-C after its first round; a terminal sends it to all processes of the command."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rounds = folder / "run" / "rounds.jsonl"
    end = time.monotonic() + patience(240)
    while not (rounds.is_file() and rounds.read_text("utf-8").count("\n")):
        assert process.poll() is None, "the run ended before its first round"
        assert time.monotonic() < end, "no round is finished"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=patience(60))
    assert "run --resume run --engine flower --superlink fl\n" in said
    assert not (folder / "run" / "result.json").exists()


@pytest.mark.slow
def test_the_page_is_carried_out(tmp_path, terminal):
    ports = {port: str(free_port()) for port in PORTS}
    running = []
    said = ""
    try:
        for block in blocks(PAGE):
            text = re.sub("|".join(PORTS), lambda found: ports[found[0]], block.text)
            text = text.replace("/srv/trial", str(tmp_path))
            if block.language in ("toml", "ini"):
                (tmp_path / block.file).parent.mkdir(exist_ok=True)
                (tmp_path / block.file).write_text(text, "utf-8")
            elif block.language == "python":
                (tmp_path / "files.py").write_text(text, "utf-8")
                shell("python files.py", tmp_path, terminal)
            elif "stays running" in block.file:
                (command,) = commands(text)
                name = re.sub(r"\W+", "-", block.file)
                words = ["bash", "-c", f"cd {tmp_path} && exec {command}"]
                one = Started(name, words, tmp_path / "logs" / f"{name}.log", terminal, str(tmp_path))
                running.append(one)
                if "superlink" in command.split()[0]:
                    wait_for(lambda: listening(int(ports["8000"])), one, 90, "it does not listen")
            elif "Ctrl-C" in block.file:
                stopped_after_a_round(commands(text)[0], tmp_path, terminal)
            elif block.language == "bash":
                for command in commands(text):
                    if command.startswith("flwr supernode list"):
                        wait_for(lambda: online(tmp_path, terminal) == 2, running[-1], 120, "the nodes are not online")
                    elif not command.startswith("export"):
                        said += shell(command, tmp_path, terminal)
    finally:
        for one in reversed(running):
            one.end()
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "rounds.jsonl").read_text("utf-8").count("\n") == 4
    predictions = (tmp_path / "predictions.csv").read_text("utf-8").splitlines()
    assert len(predictions) == 69 + 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
