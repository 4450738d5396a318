"""How many threads a run uses, who may choose, and what is left as it was."""

import pytest
import torch

from fedquilt.experiment import threads
from fedquilt.experiment.build import build
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.threads import num_weights, restored_threads, share_threads, spare_threads
from fedquilt.record import read_environment


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with restored_threads():
        torch.set_num_threads(2)
        yield


@pytest.fixture
def unset(tiny, config):
    """The tiny federation without a number of threads."""
    tiny.write_text(tiny.read_text().replace("threads = 1\n", ""))
    return config("rounds=2")


class Heard(Silent):
    def __init__(self, stop=False):
        self.said, self.stop = [], stop

    def say(self, text):
        self.said.append(text)

    def round(self, line):
        if self.stop:
            raise KeyboardInterrupt


def test_a_small_model_uses_one_thread_says_so_and_a_resumed_run_keeps_it(unset, tmp_path, fingerprint, monkeypatch):
    heard = Heard(stop=True)
    with pytest.raises(KeyboardInterrupt):
        run(unset, tmp_path / "run", heard)
    weights = num_weights(build(unset))
    assert heard.said == [
        f"1 thread, as more hardly help a model of {weights:,} weights; threads = 2 in the run file changes it"
    ]
    assert torch.get_num_threads() == 2
    assert read_environment(tmp_path / "run")["threads"] == 1
    used = []
    torch.set_num_threads(1)  # two would wait for one another
    monkeypatch.setattr(threads.torch, "set_num_threads", used.append)
    resume(tmp_path / "run")
    assert used[0] == 1


def test_whoever_chose_a_number_keeps_it(unset, config, monkeypatch):
    small = build(unset)
    assert spare_threads(build(config("threads=2"))) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert spare_threads(small) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "SMALL", num_weights(small))
    assert spare_threads(small) is None
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "SMALL", num_weights(small) + 1)
    assert spare_threads(small) is not None
    assert torch.get_num_threads() == 1
    assert spare_threads(small) is None  # nothing to tell


def test_a_run_with_a_number_of_threads_leaves_that_of_the_program(config, tmp_path):
    run(config("rounds=1", "threads=1"), tmp_path / "run")
    assert torch.get_num_threads() == 2


def test_a_worker_has_its_share_of_the_processors_unless_the_environment_sets_the_number(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 7)
    share_threads(2)
    assert torch.get_num_threads() == 3
    share_threads(9)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_threads(2)
    assert torch.get_num_threads() == 1
