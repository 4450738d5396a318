"""Runs whose clients several processes share end with the bits of one process."""

import os

import pytest

from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.run import resume, run
from fedquilt.record import read_rounds

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
        (("engine.processes=2", "engine.batch_clients=auto"), "processes = 2 and batch_clients = 'auto'; choose one"),
        (("engine.processes=2", "threads=4"), "processes = 2 have one thread each, and threads = 4"),
        (("engine.processes=0",), r"engine.processes = 0"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, said):
    with pytest.raises(ConfigError, match=said):
        config(*changes)
