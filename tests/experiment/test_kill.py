"""``kill -9`` of real commands at random moments, two at once on one folder, and going on from there."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedquilt.config.load import load
from fedquilt.engine.flower.processes import patience
from fedquilt.experiment.compare import jobs
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, holder, read_result, read_rounds

COMMAND = [sys.executable, "-c", "from fedquilt.cli import main; main()"]
NICE = ["nice", "-n", "10"] if shutil.which("nice") else []
ROUNDS = 20
CHANGES = (f"rounds={ROUNDS}", "head.policy=local", "training.steps=3")
LONGER = ("rounds=40", *CHANGES[1:])


def started(tmp_path, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        # below this process, which must see where the run stands before it is over
        [*NICE, *COMMAND, *map(str, words)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory, fingerprint):
    """The adapters of the run that nothing disturbs."""
    config = load(finished.parent / "tiny.toml", CHANGES)[0]
    return fingerprint(run(config, tmp_path_factory.mktemp("whole") / "run"))


def next_round(folder):
    return Record.open(folder).load_checkpoint()[0] if (folder / "checkpoint.json").exists() else 0


def until(true, process, seconds=300):
    """Waits until ``true()``, as long as the process runs."""
    began = time.monotonic()
    while not true() and process.poll() is None:
        assert time.monotonic() - began < patience(seconds)
        time.sleep(0.002)


def killed(process, folder, rounds, delay):
    """Whether the process was killed ``delay`` seconds after it had finished ``rounds`` more rounds."""
    lines = folder / "rounds.jsonl"

    def done():
        return lines.read_bytes().count(b"\n") if lines.exists() else 0

    wanted = done() + rounds
    until(lambda: done() >= wanted, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGKILL, 0), (out, err)
    return process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be made to wait here")
def test_a_second_command_on_a_folder_is_refused_and_a_killed_run_goes_on_to_the_same_bits(
    tiny, tmp_path, fingerprint, whole, command
):
    """In one process of its own: what the second command may have done to the first would show in its bits, too."""
    folder = tmp_path / "both"
    first = started(tmp_path, "run", tiny, *CHANGES, "--folder", folder)
    until((folder / "config.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # or it could be over before the others are
    try:
        for words in (("--resume", folder), (tiny, *CHANGES, "--folder", folder)):
            said = command("run", *words)
            assert f"is being written by process {first.pid} on " in said.err, said
        assert not (folder / "result.json").exists()
    finally:
        first.send_signal(signal.SIGCONT)
    moment = random.Random(os.getpid()).uniform(0, 0.1)
    assert killed(first, folder, 2, moment), "the run was over before it could be killed"
    assert read_result(folder) is None
    assert 1 <= next_round(folder) < ROUNDS
    assert fingerprint(resume(folder)) == whole, f"killed {moment} s after round 2"
    assert [line["round"] for line in read_rounds(folder)] == [*range(ROUNDS)]


ENTRIES = """
[[compare]]
label = "one"
method = { name = "fed-hello", allocation = "rgd" }

[[compare]]
label = "two"
method = { name = "straggler" }
"""


def descendants(pid):
    """The processes that one has started, and those that these have."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(entry.name), *descendants(int(entry.name))] if parent == pid else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_the_workers_of_a_killed_compare_end_with_it_and_a_second_start_ends_in_the_same_bits(tiny, tmp_path):
    tiny.write_text(tiny.read_text().replace("rounds = 3", "rounds = 60") + ENTRIES)
    words = ("compare", tiny, "--no-plots", "--workers", "2")
    process = started(tmp_path, *words)
    folders = [job.folder.absolute() for job in jobs(tiny)]
    until(lambda: all((folder / "rounds.jsonl").exists() for folder in folders), process)
    assert process.poll() is None, process.communicate()
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=30)
    began = time.monotonic()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() - began < patience(30), "workers outlive the command that started them"
        time.sleep(0.05)
    rounds = [len(read_rounds(folder)) for folder in folders]
    assert [holder(folder) for folder in folders] == [None, None]
    time.sleep(0.3)
    assert [len(read_rounds(folder)) for folder in folders] == rounds  # nobody writes any more
    again = started(tmp_path, *words)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, (out, err)
    for folder in folders:
        assert [line["round"] for line in read_rounds(folder)] == [*range(60)]
    assert any(line.get("resumed") for folder in folders for line in read_rounds(folder))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_five_kills_at_random_moments_change_nothing(tiny, config, tmp_path, fingerprint):
    whole = run(config(*LONGER), tmp_path / "whole")
    folder = tmp_path / "killed"
    chance = random.Random(os.getpid())
    moments = [(chance.randrange(1, 7), chance.uniform(0, 0.08)) for _ in range(5)]
    kills = 0
    for rounds, delay in moments:
        words = ("--resume", folder) if folder.exists() else (tiny, *LONGER, "--folder", folder)
        kills += killed(started(tmp_path, "run", *words), folder, rounds, delay)
    assert kills == 5, f"{moments}: the run was over before it could be killed five times"
    last = started(tmp_path, "run", "--resume", folder)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, (out, err)
    assert fingerprint(folder) == fingerprint(whole), f"killed at {moments}"
