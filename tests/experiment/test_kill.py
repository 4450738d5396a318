"""``kill -9`` of a real ``fedquilt run`` at random moments, and going on from there."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fedquilt.experiment import resume, run
from fedquilt.record import Record, read_result

COMMAND = [sys.executable, "-c", "from fedquilt.cli import main; main()"]
CHANGES = ("rounds=40", "head.policy=local", "training.steps=3")


def started(tmp_path, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def next_round(folder):
    return Record.open(folder).load_checkpoint()[0] if (folder / "checkpoint.json").exists() else 0


def killed(process, folder, rounds, delay):
    """Whether the process was killed ``delay`` seconds after it had finished ``rounds`` more rounds."""
    wanted = next_round(folder) + rounds
    deadline = time.monotonic() + 120
    lines = folder / "rounds.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if lines.exists() and lines.read_bytes().count(b"\n") >= wanted:
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGKILL, 0), (out, err)
    return process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_run_goes_on_to_the_same_bits(tiny, config, tmp_path, fingerprint):
    whole = run(config(*CHANGES), tmp_path / "whole")
    folder = tmp_path / "killed"
    moment = random.Random(os.getpid()).uniform(0, 0.1)
    process = started(tmp_path, "run", tiny, *CHANGES, "--folder", folder)
    assert killed(process, folder, 2, moment), "the run was over before it could be killed"
    assert read_result(folder) is None
    assert 1 <= next_round(folder) < 40
    assert fingerprint(resume(folder)) == fingerprint(whole), f"killed {moment} s after round 2"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_five_kills_at_random_moments_change_nothing(tiny, config, tmp_path, fingerprint):
    whole = run(config(*CHANGES), tmp_path / "whole")
    folder = tmp_path / "killed"
    chance = random.Random(os.getpid())
    moments = [(chance.randrange(1, 7), chance.uniform(0, 0.08)) for _ in range(5)]
    kills = 0
    for rounds, delay in moments:
        words = ("--resume", folder) if folder.exists() else (tiny, *CHANGES, "--folder", folder)
        kills += killed(started(tmp_path, "run", *words), folder, rounds, delay)
    assert kills == 5, f"{moments}: the run was over before it could be killed five times"
    last = started(tmp_path, "run", "--resume", folder)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, (out, err)
    assert fingerprint(folder) == fingerprint(whole), f"killed at {moments}"
