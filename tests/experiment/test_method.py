"""FedProx and server optimisers as a run file asks for them, in whole runs."""

import importlib

import pytest
import torch

from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.method import changed
from fedquilt.experiment.plan import plan
from fedquilt.experiment.progress import Progress
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record

run_module = importlib.import_module("fedquilt.experiment.run")
MOMENTUM = "aggregation.server_optimizer=momentum"


def test_without_keys_a_method_is_what_it_was(config):
    wanted = config()
    built = build(wanted)
    assert changed(wanted, built.method, built.federation, {}) is built.method


def test_proximal_in_the_run_file_keeps_every_client_nearer_to_where_it_began(config, tmp_path, recorded_run):
    moved = {}
    for mu in (0.0, 50.0):
        _, pairs = recorded_run(config("rounds=1", f"training.proximal={mu}"), tmp_path / f"mu-{mu}")
        moved[mu] = {
            reply.client: sum(float((tensor - order.params[name]).norm()) for name, tensor in reply.params.items())
            for order, reply in pairs
        }
    assert len(moved[0.0]) == 4
    assert moved[0.0].keys() == moved[50.0].keys()
    assert all(moved[50.0][client] < length for client, length in moved[0.0].items())


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_a_server_optimizer_in_the_run_file_steps_by_the_moments_that_it_keeps(config, tmp_path, kind):
    after = {}
    for name in ("none", kind):
        folder = run(config("rounds=1", f"aggregation.server_optimizer={name}"), tmp_path / name)
        after[name] = Record.open(folder).load_checkpoint()[1]
    assert "moments" not in after["none"]
    moments = after[kind]["moments"]
    assert bool(moments["variance"]) == (kind != "momentum")
    # after one round the momentum is along the step that the plain run took
    begun = build(config("rounds=1")).method.init(build(config("rounds=1")).rng.child("init"))["params"]
    for name, momentum in moments["momentum"].items():
        step = after["none"]["params"][name] - begun[name]
        assert float((momentum * step).sum()) > 0.99 * float(momentum.norm() * step.norm()) > 0


def test_proximal_zero_and_no_server_optimizer_are_the_same_bits(config, tmp_path, finished, fingerprint):
    folder = run(config("training.proximal=0.0", "aggregation.server_optimizer=none"), tmp_path / "zero")
    assert fingerprint(folder) == fingerprint(finished)


def test_rate_one_without_momentum_is_the_same_bits(config, tmp_path, finished, fingerprint):
    folder = run(config(MOMENTUM, "aggregation.server_momentum=0.0", "method.weighting=examples"), tmp_path / "one")
    assert fingerprint(folder) == fingerprint(finished)


@pytest.mark.parametrize("kind", ["momentum", "yogi"])
def test_a_run_that_was_stopped_goes_on_from_its_moments(config, tmp_path, fingerprint, kind):
    wanted = config(f"aggregation.server_optimizer={kind}", "training.proximal=0.5")
    whole = run(wanted, tmp_path / "whole")

    class Stop(Progress):
        def round(self, line):
            if line["round"] == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "halved", Stop())
    assert fingerprint(resume(tmp_path / "halved")) == fingerprint(whole)


def test_what_does_not_go_together_is_refused_by_name(config):
    wanted = config("method={name='local-only'}", "training.proximal=0.1", MOMENTUM)
    with pytest.raises(ConfigError) as caught:
        build(wanted)
    held, stepped = caught.value.problems
    assert held == (
        "training.proximal = 0.1: with method.name = 'local-only' a client receives nothing to stay "
        "near; set training.proximal = 0"
    )
    assert stepped == (
        "aggregation.server_optimizer = 'momentum': with method.name = 'local-only' the server receives no "
        "updates; set aggregation.server_optimizer = 'none'"
    )
    assert check(wanted) == [held, stepped]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule().unsteady])
def test_rules_whose_factors_are_split_anew_are_refused_with_the_reason(config, name):
    (as_method,) = check(config(f"method={{name='{name}'}}", "aggregation.server_optimizer=adam"))
    (as_rule,) = check(config(f"aggregation.rule={name}", "aggregation.server_optimizer=adam"))
    assert as_method.startswith(f"aggregation.server_optimizer = 'adam' does not go with method.name = '{name}': ")
    assert as_rule.startswith(f"aggregation.server_optimizer = 'adam' does not go with aggregation.rule = '{name}': ")
    for problem in (as_method, as_rule):
        assert RULES[name]().unsteady in problem
        assert problem.endswith("not gauge invariant; set aggregation.server_optimizer = 'none'")


@pytest.mark.parametrize("name", ["fedrot-lora", "fedrpca"])
def test_rules_that_stay_in_the_servers_coordinates_are_taken(config, name):
    for changes in ((f"method={{name='{name}'}}",), (f"aggregation.rule={name}",)):
        assert check(config(*changes, "aggregation.server_optimizer=adam")) == []


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "clipped-mean"])
def test_methods_that_average_factors_and_robust_rules_are_taken(config, rule):
    wanted = (f"aggregation.rule={rule}", "aggregation.server_optimizer=yogi")
    for name in ("fedit", "fed-hello", "fedra", "exclusive", "straggler", "full", "ffa-lora", "rolora", "fedsa-lora"):
        method = f"method={{name='{name}'}}"
        assert check(config(method, *wanted)) == [], name


def test_it_steps_on_what_central_privacy_lets_through(config):
    private = ("method.weighting=uniform", "privacy.mode=central", "privacy.test_key=1")
    experiment = build(config(*private, MOMENTUM, "head.policy=local", "network.dtype=int8"))
    state = experiment.method.init(experiment.rng.child("init"))
    (fit,) = experiment.method.exchanges
    turn = Turn(0, experiment.federation.profiles, experiment.rng)
    orders = fit.ask(state, turn)
    replies = [fit.work(experiment.clients[id], order, {})[0] for id, order in sorted(orders.items())]
    after = fit.merge(state, iter(replies))
    assert after["releases"] == 1
    moved = after["moments"]["momentum"]
    assert moved
    assert not moved.keys() & experiment.layout.head  # it stays with the clients
    for name in moved:
        torch.testing.assert_close(after["params"][name], state["params"][name] + moved[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", [("method={name='fedra'}",), ("method={name='ffa-lora'}",), ()])
def test_a_plan_sees_through_the_penalty(config, method):
    assert plan(config(*method, "training.proximal=0.1", MOMENTUM)) == plan(config(*method))
