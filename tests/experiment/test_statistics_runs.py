"""Models whose normalisation remembers batches: what of it is trained travels, and what is frozen stays."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from fedquilt.config.load import parse
from fedquilt.core.checks import reply_check
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Reply, Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record

TASK = "image-classification"


class Stop(Silent):
    def round(self, line):
        raise KeyboardInterrupt


def images(path, dark=1):
    rng, classes = np.random.default_rng(0), np.arange(48) % 3
    pixels = rng.integers(0, 60, (48, 16, 16, 3)).astype(np.uint8)
    for row, one in enumerate(classes):
        pixels[row, :, :, one] += 120
    np.savez(path, image=pixels // dark, label=classes)
    return path


@pytest.fixture
def wanted(tmp_path):
    """``wanted(section__key=value, ...)``: the config of a ResNet with all weights trained, or with changes."""
    shape = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(**shape, num_labels=3)).save_pretrained(tmp_path / "resnet")
    images(tmp_path / "data.npz")

    def made(**changes):
        keys = {
            "rounds": 2,
            "threads": 1,
            "device": "cpu",
            "model": {"name": str(tmp_path / "resnet"), "task": TASK},
            "data": {"source": str(tmp_path / "data.npz")},
            "partition": {"num_clients": 2},
            "clients": {"shares": "1", "budgets": [1]},
            "adapter": {"kind": "full"},
            "training": {"steps": 2, "batch_size": 8, "learning_rate": 0.01},
            "method": {"name": "full"},
        }
        for key, value in changes.items():
            section, _, inner = key.partition("__")
            (keys.setdefault(section, {}) if inner else keys)[inner or section] = value
        return parse(keys)

    return made


def judged(folder):
    return [json.loads(line)["evaluation"] for line in (folder / "rounds.jsonl").read_text("utf-8").splitlines()]


def tensors(folder):
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


def ordered(experiment):
    (fit,) = experiment.method.exchanges
    state = experiment.method.init(experiment.rng.child("init"))
    return fit, state, fit.ask(state, Turn(0, experiment.federation.profiles, experiment.rng.child("round", 0)))


def test_statistics_travel_are_averaged_checkpointed_and_exported(wanted, tmp_path):
    whole = run(wanted(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(wanted(), tmp_path / "stopped", Stop())
    half = tensors(export(tmp_path / "stopped", tmp_path / "half"))
    one = tensors(run(wanted(rounds=1), tmp_path / "one") / "adapters" / "global")
    stopped = resume(tmp_path / "stopped")
    assert judged(whole) == judged(stopped)
    first, again = tensors(whole / "adapters" / "global"), tensors(stopped / "adapters" / "global")
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(one[name], half[name]), name
    base = tensors(tmp_path / "resnet")
    moved = {name for name in first if not torch.equal(first[name], base[name])}
    assert {name for name in first if "running" in name or "tracked" in name} <= moved
    assert {int(value) for name, value in first.items() if "tracked" in name} == {4}, "two steps in each of two rounds"


def test_the_mean_of_statistics_is_that_of_weights(wanted):
    experiment = build(wanted(method__weighting="uniform"))
    fit, state, orders = ordered(experiment)
    assert experiment.layout.buffers
    replies = [fit.work(experiment.clients[id], orders[id], {})[0] for id in (0, 1)]
    merged = fit.merge(state, iter(replies))["params"]
    for name in experiment.layout.buffers:
        torch.testing.assert_close(merged[name], (replies[0].params[name] + replies[1].params[name]) / 2)
        assert not torch.equal(merged[name], state["params"][name])


def test_nothing_of_one_client_reaches_another(wanted, tmp_path):
    scores = []
    for name, dark in (("same", 1), ("dark", 8)):
        images(tmp_path / f"{name}-0.npz")
        images(tmp_path / f"{name}-1.npz", dark)
        config = wanted(
            data={"source": str(tmp_path / f"{name}-{{client}}.npz"), "classes": ["0", "1", "2"]},
            partition={"scheme": "sites", "num_clients": 2},
            method={"name": "local-only"},
        )
        scores.append(judged(run(config, tmp_path / name))[-1]["clients"]["0"])
    assert scores[0] == scores[1]


def test_clients_can_keep_statistics_of_their_own(wanted, tmp_path):
    config = wanted(adapter__buffers="local")
    experiment = build(config)
    fit, _, orders = ordered(experiment)
    reply, memory = fit.work(experiment.clients[0], orders[0], {})
    assert memory["params"].keys() == experiment.layout.buffers
    assert experiment.layout.buffers.isdisjoint(reply.params)
    assert experiment.layout.buffers.isdisjoint(orders[0].params)
    folder = run(config, tmp_path / "run")
    assert judged(folder)[-1]["global"] is None
    own = [tensors(folder / "adapters" / f"client-00{id}") for id in (0, 1)]
    mean = "resnet.embedder.embedder.normalization.running_mean"
    assert not torch.equal(own[0][mean], own[1][mean])
    weight = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(own[0][weight], own[1][weight])


def test_only_what_is_trained_keeps_statistics(wanted):
    experiment = build(wanted(method__name="straggler", head__policy="frozen"))
    client = experiment.clients[0]
    _, _, orders = ordered(experiment)
    names = {*experiment.layout.names([1])}
    fitted = client.fit(orders[0], {}, [1])
    assert fitted.params.keys() == names
    bench = experiment.only.bench
    with bench.training(names):
        training = {name: module.training for name, module in bench.model.named_modules() if "normalization" in name}
    for name, mode in training.items():
        assert mode == (f"{name}.running_mean" in names)
    kept = {name for name in experiment.layout.buffers if name not in names}
    for name, value in bench.state(kept).items():
        assert torch.equal(value, client.initial[name]), name


def test_a_single_row_has_no_statistics_and_changes_none(wanted):
    experiment = build(wanted(training__batch_size=1))
    bench, client = experiment.only.bench, experiment.clients[0]
    batch = {name: column[:1] for name, column in client.train.items()}
    bench.load(client.initial)
    with bench.training(bench.layout.depth):
        logits, labels = bench.forward(batch)
        torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, value in bench.state(bench.layout.buffers).items():
        assert torch.equal(value, client.initial[name])


@pytest.mark.parametrize("size", [1, 4])
def test_gradient_checkpointing_updates_statistics_once(wanted, size):
    """A block that runs a second time in the backward pass has seen the batch before."""
    fitted = []
    for on in (False, True):
        experiment = build(wanted(training__batch_size=size, training__gradient_checkpointing=on))
        client = experiment.clients[0]
        fitted.append(client.fit(ordered(experiment)[2][0], {}, range(experiment.layout.num_layers)).params)
    plain, again = fitted
    assert plain.keys() & experiment.layout.buffers
    assert all(torch.equal(plain[name], again[name]) for name in experiment.layout.depth)


def test_adapters_leave_the_bases_statistics_alone_while_dropout_acts(wanted, tmp_path):
    config = wanted(
        model={"name": "tiny:vit?image=16&patch=8", "task": TASK},
        adapter={"rank": 2, "dropout": 0.5},
        clients={"shares": "1", "budgets": [2]},
    )
    experiment = build(config)
    client = experiment.clients[0]
    bench = experiment.only.bench
    with bench.training(bench.layout.depth):
        assert all(module.training for module in bench.model.modules())
    assert client.bench.layout.buffers == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"network__dtype": "int8"},
        {"network__dtype": "bfloat16"},
        {"aggregation": {"rule": "median"}},
        {"aggregation": {"rule": "trimmed-mean"}},
        {"aggregation": {"rule": "clipped-mean", "clip_norm": 0.01}},
        {"aggregation": {"server_optimizer": "adam"}},
        {"aggregation": {"server_optimizer": "momentum"}},
        {"aggregation": {"align": "projection", "align_groups": "client"}},
        {"training__proximal": 0.1},
        {"method": {"name": "fed-hello", "allocation": "rgd"}, "clients": {"shares": "1", "budgets": [1]}},
        {"method": {"name": "fedra", "drop_layers": False}},
    ],
    ids=str,
)
def test_statistics_go_with_whatever_is_done_to_weights(wanted, tmp_path, changes):
    config = wanted(**changes)
    assert check(config) == []
    folder = run(config, tmp_path / "run")
    final = tensors(folder / "adapters" / "global")
    for name, value in final.items():
        assert bool(torch.isfinite(value.float()).all())
        assert "running_var" not in name or float(value.min()) > 0.1, name
        assert "tracked" not in name or 0 <= int(value) <= 4
    assert all(np.isfinite(one["global"]["loss"]) for one in judged(folder))


def test_what_no_gradient_moves_no_optimiser_steps(wanted):
    plain, stepping = (build(wanted(aggregation=keys)) for keys in ({}, {"server_optimizer": "adam"}))
    results = []
    for experiment in (plain, stepping):
        fit, state, orders = ordered(experiment)
        replies = [fit.work(experiment.clients[id], orders[id], {})[0] for id in (0, 1)]
        results.append(fit.merge(state, iter(replies)))
    for name in plain.layout.buffers:
        assert torch.equal(results[0]["params"][name], results[1]["params"][name])
        assert name not in results[1]["moments"]["variance"]


@pytest.mark.parametrize("mode", ["local", "central"])
def test_private_statistics_do_not_leave(wanted, mode):
    private = {"mode": mode, "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    keys = {"privacy": private, "method": {"name": "full", "weighting": "uniform"}, "evaluation": {"clients": False}}
    assert any("has running statistics ('resnet." in problem for problem in check(wanted(**keys)))
    assert check(wanted(**keys, adapter__buffers="local")) == []


def test_there_must_be_statistics_to_keep(wanted):
    model = {"name": "tiny:vit?image=16&patch=8", "task": TASK}
    with pytest.raises(ConfigError, match=r"adapter\.buffers = 'local': vit-2x32 has no running statistics"):
        build(wanted(model=model, adapter__buffers="local"))


def test_a_variance_below_zero_is_refused_and_long_statistics_are_not_an_update(wanted):
    experiment = build(wanted())
    fit, _, orders = ordered(experiment)
    name = min(name for name in experiment.layout.buffers if name.endswith("running_var"))
    reply, _ = fit.work(experiment.clients[0], orders[0], {})
    reply = Reply(0, reply.params, reply.weight, reply.metrics, orders[0].round)
    held = reply_check(experiment.federation.profiles)
    assert held(fit, orders[0], reply) is None
    worse = Reply(0, {**reply.params, name: -reply.params[name]}, reply.weight, {}, orders[0].round)
    assert "it must be from 0 to" in (held(fit, orders[0], worse) or "")


@pytest.mark.usefixtures("bytes_alone")
def test_a_plan_counts_statistics_as_they_travel(wanted, tmp_path):
    planned = {str(one.client): (one.bytes_down, one.bytes_up) for one in plan(wanted(rounds=1))}
    line = json.loads((run(wanted(rounds=1), tmp_path / "run") / "rounds.jsonl").read_text("utf-8"))
    moved = line["exchanges"][0]["clients"]
    assert {id: (one["bytes_down"], one["bytes_up"]) for id, one in moved.items()} == planned


def test_the_checkpoint_holds_every_buffer(wanted, tmp_path):
    folder = run(wanted(rounds=1), tmp_path / "run")
    _, state, _ = Record.open(folder).load_checkpoint()
    assert {name for name in state["params"] if "running_mean" in name}


def test_statistics_over_a_network_end_in_the_same_bits(wanted, tmp_path):
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    config = wanted(network={"dtype": "int8", "timeout": 5.0, "wait": 5.0})
    embedded, folder = run(config, tmp_path / "embedded"), tmp_path / "flower"
    grid = InProcessGrid(client_app(flower_site.joined(config), folder / "sites"), 2)
    run(config, folder, connect=flower.over(grid, config, name="in-process", poll=0.05))
    left, right = (Record.open(one).load_checkpoint()[1]["params"] for one in (folder, embedded))
    assert left.keys() == right.keys()
    assert all(left[name].equal(tensor) for name, tensor in right.items())
