import shutil
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedquilt.core.errors import FedquiltError, RunError
from fedquilt.experiment.compare import compare, jobs
from fedquilt.record import read_partition, read_result

ENTRIES = """
[[compare]]
label = "Random layers"
method = { name = "fed-hello", allocation = "rgd" }

[[compare]]
label = "local"
method = { name = "local-only" }

[[compare]]
method = { name = "straggler" }
"""


class Watch:
    """A Progress that notes where runs begin and interrupts the ``stop_at``-th finished round."""

    def __init__(self, stop_at=None):
        self.begun, self.rounds, self.stop_at = [], 0, stop_at

    def started(self, name, first, rounds):
        self.begun.append((name, first))

    def client(self, exchange, number, of): ...

    def step(self, number, of): ...

    def round(self, line):
        self.rounds += 1
        if self.rounds == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def file(tiny):
    tiny.write_text("seeds = [1, 2]\n" + tiny.read_text().replace("rounds = 3", "rounds = 2") + ENTRIES)
    return tiny


def adapters(folder):
    return {path.parent.name: path.read_bytes() for path in sorted((folder / "adapters").rglob("*.safetensors"))}


def test_every_label_and_seed_is_one_job_in_a_folder_of_its_own(file):
    found = jobs(file)
    assert [(job.label, job.seed) for job in found] == [
        (label, seed) for label in ("Random layers", "local", "straggler") for seed in (1, 2)
    ]
    assert len({job.folder for job in found}) == 6
    assert found[0].folder.parent == Path("runs/tiny")
    assert found[0].folder.name.startswith("random-layers-seed1-")
    changed = jobs(file, ["training.steps=3"])
    assert {job.folder for job in changed}.isdisjoint({job.folder for job in found})
    moved = jobs(file, ["evaluation.last=1", "device=cpu"])  # where and how to look, not what comes out
    assert [job.folder for job in moved] == [job.folder for job in found]
    assert not any(job.finished for job in found)


def test_the_time_left_is_that_of_all_runs_and_rounds_that_are_done_do_not_count(file):
    wanted = [job for job in jobs(file) if job.seed == 1]
    with pytest.raises(KeyboardInterrupt):
        compare(wanted, progress=Watch(stop_at=3))
    assert [job.rounds_left for job in wanted] == [0, 1, 2]
    lines, seen = [], []

    def done(line):
        lines.append(line)
        seen.append(forecasts[-1])

    forecasts = []
    compare(wanted, progress=SimpleNamespace(round=done, forecast=forecasts.append))
    assert [line["runs_left"] for line in lines] == [2, 1, 1]
    assert [line["seconds_left"] for line in lines] == [one.left for one in seen]
    # first both rounds of the last run, at the pace of the one before it
    expected = [rounds * (one.round + one.evaluation) for rounds, one in zip((2, 1, 0), seen, strict=True)]
    assert [one.left for one in seen] == pytest.approx(expected)


def test_finished_runs_are_kept_stopped_ones_resumed_and_the_split_is_the_same(file):
    wanted = [job for job in jobs(file) if job.seed == 1]
    with pytest.raises(KeyboardInterrupt):
        compare(wanted, progress=Watch(stop_at=3))
    assert [job.finished for job in wanted] == [True, False, False]
    first = wanted[0].folder / "result.json"
    written = first.stat().st_mtime_ns

    watch, told = Watch(), []
    folders = compare(wanted, progress=watch, on_done=lambda job, number, of: told.append((job.label, number, of)))
    assert [first_round for _, first_round in watch.begun] == [1, 0]  # the stopped one goes on, the last one begins
    assert told == [("local", 1, 2), ("straggler", 2, 2)]
    assert first.stat().st_mtime_ns == written
    assert folders == {job.label: [job.folder] for job in wanted}
    assert len({read_partition(job.folder)["digest"] for job in wanted}) == 1
    assert all(read_result(job.folder)["status"] == "finished" for job in wanted)

    idle = Watch()
    assert compare(wanted, progress=idle) == folders
    assert idle.begun == []

    whole = jobs(file, ["output=whole"])[2]
    compare([whole])
    assert adapters(whole.folder) == adapters(wanted[1].folder)


def test_seeds_make_other_splits(file):
    wanted = [job for job in jobs(file) if job.label == "straggler"]
    compare(wanted)
    assert len({read_partition(job.folder)["digest"] for job in wanted}) == 2


def test_a_folder_that_holds_another_run_is_refused(file):
    job = jobs(file)[0]
    compare([job])
    other = jobs(file, ["training.steps=9"])[0]
    compare([other])
    shutil.rmtree(job.folder)
    other.folder.rename(job.folder)
    with pytest.raises(RunError, match=r"started from another config: training.steps is 9 there and 2 now"):
        compare([job])


def test_a_run_that_fails_is_named_and_the_others_stay(file):
    wanted = [jobs(file)[0], jobs(file, ["training.learning_rate=1e30"])[3]]
    with pytest.raises(FedquiltError, match=r"^'local', seed 2: round 1, exchange 'fit': 0 of 4 clients"):
        compare(wanted)
    assert [job.finished for job in wanted] == [True, False]


def test_processes_side_by_side_give_the_same_bits(file):
    alone = [job for job in jobs(file, ["output=alone"]) if job.seed == 1][:2]
    beside = [job for job in jobs(file, ["output=beside"]) if job.seed == 1][:2]
    compare(alone)
    told, seen, rounds, begun = [], [], [], []

    def done(job, number, of):
        told.append((number, of))
        assert (job.folder.name, 1, 2) in rounds  # all that a worker says is heard before it is done

    watch = SimpleNamespace(
        forecast=seen.append,
        started=lambda *words: begun.append(words),
        round=lambda line: rounds.append((line["run"], line["round"], line["rounds"])),
    )
    compare(beside, workers=2, progress=watch, on_done=done)
    assert told == [(1, 2), (2, 2)]
    assert sorted(begun) == sorted((job.folder.name, 0, 2) for job in beside)
    assert sorted(rounds) == sorted((job.folder.name, number, 2) for job in beside for number in (0, 1))
    assert len(seen) >= 2  # one from each process
    assert seen[0].runs == 2
    assert all(0 <= one.left < 100 for one in seen)
    for one, other in zip(alone, beside, strict=True):
        assert one.folder.name == other.folder.name
        assert adapters(one.folder) == adapters(other.folder)


@pytest.mark.slow
def test_an_interrupt_ends_the_processes_at_once_and_what_they_did_is_gone_on_with(file):
    def interrupted(job, number, of):
        raise KeyboardInterrupt

    wanted = [job for job in jobs(file) if job.seed == 1]
    wanted += [job for job in jobs(file, ["rounds=400"]) if job.seed == 1][1:2]  # too long to be over by then
    strangers, handler = set(active_children()), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compare([wanted[0], wanted[3], wanted[2]], workers=2, on_done=interrupted)
    deadline = time.monotonic() + 60  # the pool's own thread may be the one that sees a child's end, a moment later
    while set(active_children()) != strangers and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(active_children()) == strangers
    assert signal.getsignal(signal.SIGINT) is handler
    assert not wanted[3].finished
    compare(wanted[:3])
    assert all(job.finished for job in wanted[:3])
