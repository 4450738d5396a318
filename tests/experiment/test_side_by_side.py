"""A run with clients side by side: what it records, what a resumed run keeps, and where it is refused."""

from __future__ import annotations

import re

import pytest
import torch

from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError
from fedquilt.experiment import build, side_by_side
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.side_by_side import chosen
from fedquilt.record import Record, read_environment, read_rounds

KEYS = {
    "rounds": 2,
    "threads": 1,
    "device": "cpu",
    "model": {"name": "tiny:vit?layers=2&width=8&image=8&patch=4", "task": "image-classification"},
    "data": {"source": "sklearn:digits", "limit": 90},
    "partition": {"num_clients": 5},
    "clients": {"shares": "1", "budgets": [1]},
    "training": {"steps": 2, "batch_size": 4},
    "method": {"name": "fedit"},
}


def config(width, **more):
    return parse({**KEYS, "engine": {"batch_clients": width}, **more})


def state_of(folder):
    return Record.open(folder).load_checkpoint(None)[1]["params"]


def test_side_by_side_is_the_same_run_up_to_rounding_and_resumes_to_the_bit(tmp_path):
    turn, both = run(config("off"), tmp_path / "turn"), run(config(3), tmp_path / "both")
    assert "batch_clients" not in read_environment(turn)
    assert read_environment(both)["batch_clients"] == 3
    assert not any("in_turn" in line for line in [*read_rounds(turn), *read_rounds(both)])
    one, other = state_of(turn), state_of(both)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    resume(both, back_to=1)
    again = state_of(both)
    assert all(torch.equal(again[name], tensor) for name, tensor in other.items())
    third = state_of(run(config(3), tmp_path / "third"))
    assert all(torch.equal(third[name], tensor) for name, tensor in other.items())


def test_the_record_says_who_was_trained_alone(tmp_path):
    folder = run(config(5, method={"name": "fedra"}), tmp_path / "run")
    for line in read_rounds(folder):
        assert line["in_turn"] == dict.fromkeys(map(str, range(5)), "blocks of its model are left out")


@pytest.mark.parametrize(("gain", "width"), [(2.5, 5), (1.05, 1)])
def test_auto_records_its_choice_and_a_resumed_run_keeps_it(tmp_path, monkeypatch, gain, width):
    monkeypatch.setattr(side_by_side, "_gain", lambda jobs: gain)
    folder = run(config("auto"), tmp_path / "run")
    assert read_environment(folder).get("batch_clients", 1) == width
    last = state_of(folder)
    monkeypatch.setattr(side_by_side, "_gain", lambda jobs: pytest.fail("the choice was made anew"))
    resume(folder, back_to=1)
    assert all(torch.equal(state_of(folder)[name], tensor) for name, tensor in last.items())


def test_auto_chooses_no_more_than_memory_allows(monkeypatch):
    monkeypatch.setattr(side_by_side, "_gain", lambda jobs: 9.0)
    experiment = build(config("auto"))
    assert chosen(experiment).width == 5
    kept = side_by_side._kept_bytes(side_by_side._jobs(experiment)[0])
    assert kept > 10_000
    monkeypatch.setattr(side_by_side, "_free_bytes", lambda device: 7 * kept)  # half of it may be used
    assert chosen(experiment).width == 3
    monkeypatch.setattr(side_by_side, "_free_bytes", lambda device: kept)
    assert chosen(experiment) == (
        1,
        "clients are trained one after another, as their activations would not fit side by side",
    )


def test_auto_measures_what_it_says():
    choice = chosen(build(config("auto")))
    assert choice.width in (1, 5)
    assert "times as fast" in choice.said


def test_a_cache_of_lower_blocks_is_the_same_run_up_to_rounding(tmp_path):
    upper = {"name": "fed-hello", "allocation": "gd", "shape": "inverted-triangle"}
    keys = {**KEYS, "method": upper, "training": {"epochs": 3, "batch_size": 4}}
    plain = run(parse(keys), tmp_path / "plain")
    kept = run(parse({**keys, "engine": {"prefix_cache": 64}}), tmp_path / "kept")
    one, other = state_of(plain), state_of(kept)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    wished = parse({**keys, "engine": {"prefix_cache": "auto"}})
    with pytest.raises(ConfigError, match=r"engine.prefix_cache = 'auto': with --engine flower-sim"):
        run(wished, tmp_path / "run", connect=EMBEDDED._replace(name="flower-sim"))
    with pytest.raises(ConfigError, match=r"engine: prefix_cache = 'auto' and batch_clients = 3; choose one of them"):
        parse({**keys, "engine": {"prefix_cache": "auto", "batch_clients": 3}})


def test_other_engines_refuse(tmp_path):
    with pytest.raises(ConfigError, match=r"engine.batch_clients = 3: with --engine flower-sim"):
        run(config(3), tmp_path / "run", connect=EMBEDDED._replace(name="flower-sim"))
    assert not (tmp_path / "run").exists()


def test_a_client_that_is_left_over_is_named(tmp_path):
    folder = run(config(4), tmp_path / "run")
    assert [line["in_turn"] for line in read_rounds(folder)] == 2 * [{"4": "no other client can be trained beside it"}]


def test_auto_goes_on_where_the_trial_fails():
    steep = {"steps": 2, "batch_size": 4, "learning_rate": 1e30, "optimizer": "sgd"}
    choice = chosen(build(config("auto", training=steep)))
    assert choice.width == 1
    assert re.search("as the trial of both ways failed: loss is (nan|inf) at step 2$", choice.said)
