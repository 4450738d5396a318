"""Runs whose clients several processes share end with the bits of one process."""

import multiprocessing
import os

import pytest
import torch

from fedquilt.core.errors import ConfigError, RoundError, RunError
from fedquilt.engine.local import LocalEngine
from fedquilt.engine.pool import Pool
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.side_by_side import with_processes
from fedquilt.privacy.ledger import ledgers
from fedquilt.record import Record, read_environment, read_rounds

METHODS = [
    (),
    ("method.name=fedsa-lora", "training.optimizer=sgd"),
    ("method.name=flora",),
    ("evaluation.clients=received", "network.dtype=bfloat16"),
    ("privacy.mode=local", "privacy.test_key=7", "privacy.noise_multiplier=0.5", "method.weighting=uniform"),
]


@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: changes[0] if changes else "plain")
def test_the_bits_are_those_of_one_process(config, tmp_path, fingerprint, changes):
    alone = run(config("rounds=2", *changes), tmp_path / "alone")
    shared = run(config("rounds=2", "engine.processes=2", *changes), tmp_path / "shared")
    assert fingerprint(shared) == fingerprint(alone)
    for line, other in zip(read_rounds(shared), read_rounds(alone), strict=True):
        assert (line["exchanges"], line["evaluation"]) == (other["exchanges"], other["evaluation"])


def test_a_run_whose_process_dies_is_resumed_to_the_same_bits(config, tmp_path, monkeypatch, fingerprint, finished):
    first = os.getpid()
    real = LocalEngine._elsewhere

    def dying(self, exchange, client, order, memory):
        if order.round == 1 and os.getpid() != first:
            os._exit(9)
        return real(self, exchange, client, order, memory)

    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "_elsewhere", dying)
        with pytest.raises(RoundError, match=r"process \d of 2 ended with exit code 9 while client \d worked in it"):
            run(config("engine.processes=2"), tmp_path / "cut")
    assert fingerprint(resume(tmp_path / "cut")) == fingerprint(finished)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("engine.processes=2", "threads=4"), "processes = 2 have one thread each, and threads = 4"),
        (("engine.processes=0",), r"engine.processes = 0"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, said):
    with pytest.raises(ConfigError, match=said):
        config(*changes)


def test_a_run_goes_on_with_another_number_and_releases_nothing_twice(config, tmp_path, monkeypatch, fingerprint):
    """A process dies when its client's ledger has a noisy reply that nobody was given."""
    private, numbers, first, real = METHODS[-1], [], os.getpid(), LocalEngine._elsewhere

    class Counted(Pool):
        def __init__(self, number, work):
            numbers.append(number)
            super().__init__(number, work)

    def dying(self, exchange, client, order, memory):
        answer = real(self, exchange, client, order, memory)
        if order.round == 1 and os.getpid() != first:
            os._exit(9)
        return answer

    monkeypatch.setattr("fedquilt.engine.local.Pool", Counted)
    whole, cut = run(config("rounds=2", *private), tmp_path / "whole"), tmp_path / "cut"
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "_elsewhere", dying)
        with pytest.raises(RoundError, match="exit code 9"):
            run(config("rounds=2", "engine.processes=2", *private), cut)
    resume(cut, config("rounds=2", "engine.processes=3", *private))
    assert numbers == [2, 3]
    assert fingerprint(cut) == fingerprint(whole)
    spent = ledgers(cut / "sites")
    assert max(one["releases"] for one in spent.values()) == 2
    assert spent == ledgers(whole / "sites")


def test_a_run_of_several_threads_does_not_go_on_with_several_processes(config, tmp_path):
    with pytest.raises(RunError, match=r"began with 4 threads, and each of engine.processes = 2 has one"):
        with_processes(tmp_path, config(), 2, 4)
    assert with_processes(tmp_path, config("engine.processes=3"), 1, 4).engine.processes == 1


def test_the_clients_of_each_process_are_trained_side_by_side(config, tmp_path, fingerprint):
    alone = run(config("rounds=2"), tmp_path / "alone")
    both = run(config("rounds=2", "engine.processes=2", "engine.batch_clients=3"), tmp_path / "both")
    one, other = (Record.open(folder).load_checkpoint()[1]["params"] for folder in (alone, both))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert not any("in_turn" in line for line in read_rounds(both))
    settings = read_environment(both)
    assert settings["batch_clients"] == 3
    again = run(config("rounds=2", "engine.processes=2", "engine.batch_clients=3"), tmp_path / "again")
    assert fingerprint(again) == fingerprint(both)
    same = config("rounds=2", "engine.processes=2", "engine.batch_clients=3")
    assert fingerprint(resume(both, same, back_to=1)) == fingerprint(again)
    other = config("rounds=2", "engine.processes=3", "engine.batch_clients=3")
    with pytest.raises(RunError, match=r"began with engine.processes = 2, in each of which .* go on with the same num"):
        resume(both, other, back_to=1)


def test_whoever_cannot_be_stacked_is_named_by_its_process(config, tmp_path):
    keys = ("rounds=1", "engine.processes=2", "engine.batch_clients=3", "training.gradient_checkpointing=true")
    (line,) = read_rounds(run(config(*keys), tmp_path / "run"))
    assert set(line["in_turn"].values()) == {"training.gradient_checkpointing = true"}
    assert line["in_turn"].keys() == line["exchanges"][0]["clients"].keys()


def test_an_interrupt_leaves_no_process_behind(config, tmp_path, stopped):
    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        run(config("engine.processes=2"), tmp_path / "run", stopped)
    assert multiprocessing.active_children() == before
