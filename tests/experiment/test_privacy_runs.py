"""Defence and privacy as a run file asks for them, in whole runs."""

import importlib
import json
import math
from dataclasses import replace

import pytest
import torch
from promises import same

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.robust import aggregate_rule
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.loop import perform
from fedquilt.core.method import Wire
from fedquilt.core.params import squared_norm, sub
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply, Turn
from fedquilt.core.wire import WIRE, lengthened, lowered, raised
from fedquilt.engine.cohort import uniform_cohorts
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.methods import METHODS, traits_of
from fedquilt.privacy.account import gaussian_epsilon, sampled_epsilon
from fedquilt.privacy.ledger import ledgers
from fedquilt.privacy.spending import cohort_key, hides_cohorts, spending
from fedquilt.record import Record, read_environment, read_rounds

build_module = importlib.import_module("fedquilt.experiment.build")
groups_module = importlib.import_module("fedquilt.experiment.groups")
CENTRAL = ("method.weighting=uniform", "privacy.mode=central", "privacy.clip_norm=0.5")
LOCAL = ("method.weighting=uniform", "privacy.mode=local", "privacy.clip_norm=0.5")


@pytest.mark.parametrize(
    ("rule", "own"), [("median", {}), ("trimmed-mean", {"trim_share": 0.3}), ("clipped-mean", {"clip_norm": 0.01})]
)
def test_a_run_combines_replies_by_the_rule_of_its_file(config, tmp_path, recorded_run, rule, own):
    settings = [f"aggregation.{key}={value}" for key, value in own.items()]
    wanted = config("rounds=1", f"aggregation.rule={rule}", *settings)
    folder, moved = recorded_run(wanted, tmp_path / rule)
    begun, replies = moved[0][0].params, [reply for _, reply in moved]
    after = Record.open(folder).load_checkpoint()[1]["params"]
    combine = aggregate_rule(RuleSettings(rule, **own))
    assert same(after, combine(begun, replies, "examples"))
    assert not same(after, layerwise_mean(begun, replies, "examples"))


@pytest.mark.parametrize("method", ["fed-hello", "fedit", "fedra", "exclusive", "straggler", "full", "local-only"])
def test_every_layered_method_takes_the_federations_rule(config, monkeypatch, method):
    asked = []
    monkeypatch.setattr(
        groups_module, "tensor_rule", lambda config, buffers: lambda base, replies, weighting: asked.append(1) or base
    )
    changes = [f"method.name={method}"] + (["method.allocation=rgd"] if method == "fed-hello" else [])
    made = build(config(*changes)).method
    params = made.init(made_rng := build_module.Rng(1))["params"]
    made.exchanges[0].merge({**made.init(made_rng), "round": 0}, [Reply(0, params, 1.0)])
    assert asked == [1]


class Spoiled(LocalEngine):
    """The embedded engine, but client 0 sends what ``spoil`` makes of its reply."""

    spoil = staticmethod(lambda reply: reply)

    def send(self, exchange, orders):
        for reply in super().send(exchange, orders):
            yield self.spoil(reply) if reply.client == 0 else reply


@pytest.mark.parametrize(
    ("spoil", "settings", "reason"),
    [
        (lambda r: replace(r, params=dict(list(r.params.items())[1:])), (), "is missing"),
        (lambda r: replace(r, params={n: t[:0] for n, t in r.params.items()}), (), "has shape (0,"),
        (lambda r: replace(r, weight=1e9), (), "but the client announced"),
        (lambda r: replace(r, round=r.round + 1), (), "answers round"),
        (
            lambda r: replace(r, params={n: t + 1e6 for n, t in r.params.items()}),
            ("defence.max_update_norm=100.0",),
            "the update's norm is",
        ),
        (lambda r: r, ("defence.max_reply_bytes=1000", "method.weighting=uniform"), "at most 1000 are allowed"),
    ],
)
def test_bad_replies_are_dropped_in_a_real_run_and_recorded(config, tmp_path, monkeypatch, spoil, settings, reason):
    monkeypatch.setattr(Spoiled, "spoil", staticmethod(spoil))
    monkeypatch.setattr(importlib.import_module("fedquilt.experiment.engine"), "LocalEngine", Spoiled)
    wanted = config("clients.cohort=6", "rounds=2", *settings)
    folder = tmp_path / "spoiled"
    if "max_reply_bytes" in str(settings):  # nobody's reply is as small
        with pytest.raises(RoundError, match=r"client 5: .* bytes of tensors; at most 1000 are allowed"):
            run(wanted, folder)
        return
    for line in read_rounds(run(wanted, folder)):
        (exchange,) = line["exchanges"]
        assert list(exchange["dropped"]) == ["0"]
        assert reason in exchange["dropped"]["0"]
        assert len(exchange["clients"]) == 5


def test_no_honest_client_of_any_method_is_refused(config, tmp_path):
    for name, more in {
        "fed-hello": ("method.allocation=fim", "method.scores_from=clients", "method.warmup=1", "method.refresh=1"),
        "fedra": (),
        "local-only": (),
        "exclusive": ("head.policy=local",),
        "straggler": ("head.policy=frozen",),
    }.items():
        folder = run(config(f"method.name={name}", "rounds=2", *more), tmp_path / name)
        assert all(not line["exchanges"][0]["dropped"] for line in read_rounds(folder))


def test_a_round_below_the_minimum_cohort_stops_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Spoiled, "spoil", staticmethod(lambda reply: replace(reply, params={})))
    monkeypatch.setattr(importlib.import_module("fedquilt.experiment.engine"), "LocalEngine", Spoiled)
    wanted = config("clients.cohort=6", "rounds=1", "defence.min_cohort=6")
    with pytest.raises(RoundError, match=r"5 of 6 clients sent a usable reply and 6 are needed \(client 0: tensor"):
        run(wanted, tmp_path / "few")


# Privacy -------------------------------------------------------------------------------------


def test_a_central_run_shows_what_it_has_spent_in_every_round(config, tmp_path):
    folder = run(config(*CENTRAL, "privacy.noise_multiplier=4.0", "privacy.delta=0.01"), tmp_path / "central")
    lines = read_rounds(folder)
    for number, line in enumerate(lines):
        spent = line["privacy"]
        assert spent["mode"] == "central"
        assert spent["delta"] == 0.01
        took_part = [client for one in lines[: number + 1] for client in one["exchanges"][0]["clients"]]
        most = max(took_part.count(client) for client in took_part)
        assert spent["releases"] == most
        assert spent["epsilon"] == spent["epsilon_known_cohorts"] == gaussian_epsilon(4.0, most, 0.01)
        assert spent["epsilon_secret_cohorts"] is None, "which layers moved tells who took part"
        for client in line["exchanges"][0]["clients"].values():
            assert client["metrics"] == {}
        assert line["state"]["releases"] == number + 1
    assert lines[0]["privacy"]["epsilon"] < lines[-1]["privacy"]["epsilon"]


def test_a_local_run_counts_the_client_that_took_part_most_often(config, tmp_path):
    wanted = config(*LOCAL, "privacy.noise_multiplier=4.0", "privacy.delta=0.01", "clients.cohort=2")
    lines = read_rounds(run(wanted, tmp_path / "local"))
    took_part = [client for line in lines for client in line["exchanges"][0]["clients"]]
    most = max(took_part.count(client) for client in took_part)
    spent = lines[-1]["privacy"]
    assert spent["releases"] == most
    assert spent["epsilon"] == spent["epsilon_known_cohorts"] == gaussian_epsilon(4.0, most, 0.01)


ALL_LAYERS = ("clients.budgets=[3, 3, 3]",)


def test_the_smaller_epsilon_is_shown_where_cohorts_can_be_hidden_and_is_never_the_first(config, tmp_path):
    changes = (*CENTRAL, *ALL_LAYERS, "clients.cohort=1", "privacy.noise_multiplier=4.0", "privacy.delta=0.01")
    lines = read_rounds(run(config(*changes), tmp_path / "hidden"))
    for number, line in enumerate(lines):
        spent, most = line["privacy"], line["privacy"]["releases"]
        assert spent["epsilon"] == gaussian_epsilon(4.0, most, 0.01)
        # one of the other five, for all that a client knows that was not there itself
        wanted = min(spent["epsilon"], sampled_epsilon(4.0, 1, 5, number + 1, 0.01))
        assert spent["epsilon_secret_cohorts"] == wanted
    assert lines[0]["privacy"]["epsilon_secret_cohorts"] < lines[0]["privacy"]["epsilon"]


@pytest.mark.parametrize(
    "changes",
    [
        ("privacy.test_key=3",),
        ("head.policy=local",),
        ("clients.budgets=[1, 3, 3]",),
        (
            "method.name=fedsa-lora",
            "method.weighting=uniform",
        ),
    ],
)
def test_cohorts_that_show_make_no_epsilon_smaller(config, changes):
    wanted = config(*CENTRAL, *ALL_LAYERS, *changes)
    experiment, key = build(wanted), cohort_key(wanted)
    assert (key is None) == (wanted.privacy.test_key is not None)
    heads = {group.config.head.policy for group in experiment.groups}
    assert not hides_cohorts(experiment.federation, heads, key, stateless=experiment.traits.stateless)
    whole = build(config(*CENTRAL, *ALL_LAYERS)).federation
    assert hides_cohorts(whole, {"aggregate"}, "ab", stateless=True)
    assert not hides_cohorts(whole, {"aggregate"}, "ab", stateless=False)


def test_methods_that_are_called_stateless_leave_nothing_with_their_clients(config, tmp_path):
    names = [name for name in METHODS if traits_of(name).stateless]
    assert len(names) > 5
    for name in names:
        changes = (f"method.name={name}", "rounds=1", "clients.cohort=1", "privacy.noise_multiplier=0.1")
        kind = ("adapter.kind=full",) if name == "full" else ()
        own = ("method.allocation=rgd",) if name == "fed-hello" else ()
        folder = run(config(*CENTRAL, *changes, *kind, *own), tmp_path / name)
        memories = Record.open(folder).load_checkpoint()[2]
        assert not any(kept for memory in memories.values() for kept in memory.values()), name


def test_nobody_can_list_central_cohorts_from_the_seed_or_from_an_order(config, tmp_path):
    changes = (*CENTRAL, "clients.cohort=2", "rounds=8", "privacy.noise_multiplier=0.1", "evaluation.every=8")
    wanted = config(*changes)
    profiles = build(wanted).federation.profiles

    def listed(rng):
        drawn = uniform_cohorts(profiles, 2, rng)
        return [[str(profile.id) for profile in drawn(number)] for number in range(8)]

    folder = run(wanted, tmp_path / "secret")
    took_part = [[*line["exchanges"][0]["clients"]] for line in read_rounds(folder)]
    assert took_part != listed(Rng(wanted.seed))
    key = read_environment(folder)["cohort_key"]
    assert took_part == listed(Rng(int(key, 16)))
    again = read_environment(run(wanted, tmp_path / "again"))["cohort_key"]
    assert again != key
    assert int(key, 16) > 2**64


def test_a_stopped_central_run_goes_on_with_its_own_cohorts(config, tmp_path, stopped):
    changes = (*CENTRAL, "clients.cohort=2", "privacy.noise_multiplier=0.1")
    with pytest.raises(KeyboardInterrupt):
        run(config(*changes), tmp_path / "one", stopped)
    folder = resume(tmp_path / "one")
    drawn = uniform_cohorts(
        build(config(*changes)).federation.profiles, 2, Rng(int(read_environment(folder)["cohort_key"], 16))
    )
    for number, line in enumerate(read_rounds(folder)):
        assert [*line["exchanges"][0]["clients"]] == [str(profile.id) for profile in drawn(number)]


def test_a_client_that_has_spent_what_it_may_is_dropped_by_name_and_the_others_go_on(config, tmp_path):
    one = gaussian_epsilon(4.0, 1, 1e-5)
    changes = (*LOCAL, "privacy.noise_multiplier=4.0", f"privacy.client_epsilon={one}", "clients.cohort=2", "rounds=3")
    lines = read_rounds(run(config(*changes), tmp_path / "few"))
    answered = [client for line in lines for client in line["exchanges"][0]["clients"]]
    dropped = [reason for line in lines for reason in line["exchanges"][0]["dropped"].values()]
    assert len(answered) == len({*answered}), "each client once"
    assert len(answered) + len(dropped) == 6
    assert all("this client's privacy allowance is spent: 1 releases" in reason for reason in dropped)
    told = ledgers(tmp_path / "few" / "sites")
    assert [one["releases"] for one in told.values()] == [1] * len(answered)


def test_a_round_that_was_stopped_before_its_end_is_not_released_twice(config, tmp_path, monkeypatch):
    """Killed when all had answered and nothing was recorded: the same replies come again, the noise with them."""
    changes = (*LOCAL, "privacy.noise_multiplier=4.0", "rounds=1")
    with monkeypatch.context() as patched:
        patched.setattr(Record, "append_round", lambda self, line: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(config(*changes), tmp_path / "one")
    kept = {path: path.read_bytes() for path in (tmp_path / "one" / "sites").rglob("*.safetensors")}
    assert len(kept) == 4
    resume(tmp_path / "one")
    assert {path: path.read_bytes() for path in (tmp_path / "one" / "sites").rglob("*.safetensors")} == kept
    assert all(told["releases"] == 1 for told in ledgers(tmp_path / "one" / "sites").values())


def test_spending_depends_on_the_round_alone_so_a_resumed_run_goes_on_with_it(config):
    wanted = config(*CENTRAL, "privacy.noise_multiplier=3.0")
    experiment = build(wanted)
    cohorts = uniform_cohorts(experiment.federation.profiles, wanted.cohort, experiment.rng)
    steadily, at_once = spending(wanted, cohorts, 1), spending(wanted, cohorts, 1)
    assert [steadily(number) for number in range(4)][-1] == at_once(3)
    assert spending(config(), cohorts, 1)(0) is None
    clipped_only = spending(config(*CENTRAL, "privacy.noise_multiplier=0.0"), cohorts, 1)(0)
    assert clipped_only["epsilon"] is None
    json.dumps(clipped_only, allow_nan=False)


@pytest.mark.parametrize("mode", [CENTRAL, LOCAL])
def test_with_a_test_key_a_stopped_run_ends_in_the_same_bits(config, tmp_path, fingerprint, mode):
    class Stopping:
        def __init__(self):
            self.calls = 0

        def __getattr__(self, name):
            def told(*rest):
                self.calls += name == "round"
                if self.calls == 2:
                    raise KeyboardInterrupt

            return told

    changes = (*mode, "privacy.test_key=4", "head.policy=local")
    whole = run(config(*changes), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config(*changes), tmp_path / "stopped", Stopping())
    assert fingerprint(resume(tmp_path / "stopped")) == fingerprint(whole)
    assert read_rounds(whole)[0]["privacy"]["test_key"] is True
    secret = [fingerprint(run(config(*mode, "rounds=1"), tmp_path / name)) for name in ("one", "two")]
    assert secret[0] != secret[1]


def test_noise_is_really_there(config, tmp_path, fingerprint):
    quiet, loud = (
        run(config(*CENTRAL, "privacy.test_key=1", f"privacy.noise_multiplier={noise}"), tmp_path / f"noise-{noise}")
        for noise in (0.0, 100.0)
    )
    scores = [read_rounds(folder)[-1]["evaluation"]["global"]["loss"] for folder in (quiet, loud)]
    assert scores[1] > 5 * scores[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (("privacy.mode=central",), "privacy.mode = 'central': with method.weighting = 'examples' the influence"),
        (("privacy.mode=local",), "set method.weighting = 'uniform'"),
        (
            (*CENTRAL, "method.allocation=fim", "method.scores_from=clients"),
            "clients would send scores of their rows without noise",
        ),
        (("privacy.client_epsilon=3.0",), "privacy.client_epsilon = 3: only applies to privacy.mode = 'local'"),
        (
            (*LOCAL, "privacy.client_epsilon=3.0", "clients.cohort=6"),
            "privacy.client_epsilon = 3: 3 rounds cost a client epsilon 20.13, so it would stop replying before",
        ),
        ((*LOCAL, "privacy.client_epsilon=9.0"), "privacy.client_epsilon = 9: 1 round cost a client epsilon 9.997"),
        ((*LOCAL, "evaluation.clients=received"), "clients would send scores on their own rows without noise"),
        ((*CENTRAL, "aggregation.rule=median"), "aggregation.rule = 'median' has no known bound"),
        ((*CENTRAL, "defence.max_update_norm=3.0"), "defence.max_update_norm would reveal which clients' updates"),
    ],
)
def test_what_privacy_cannot_be_had_with_is_refused_before_anything_runs(config, changes, text):
    with pytest.raises(ConfigError) as caught:
        build(config(*changes))
    assert text in str(caught.value)
    assert any(text in problem for problem in check(config(*changes)))


def test_every_contradiction_is_told_at_once(config):
    changes = ("privacy.mode=central", "aggregation.rule=median", "defence.max_update_norm=1.0")
    with pytest.raises(ConfigError) as caught:
        build(config(*changes))
    assert len(caught.value.problems) == 3


def test_local_noise_goes_with_robust_rules_and_norm_bounds(config, tmp_path):
    changes = (*LOCAL, "aggregation.rule=median", "defence.max_update_norm=1000.0", "privacy.noise_multiplier=0.1")
    assert len(read_rounds(run(config(*changes, "rounds=1"), tmp_path / "both"))) == 1


def test_secure_aggregation_is_refused_with_the_reason(config):
    with pytest.raises(
        ConfigError, match=r"privacy\.secure_aggregation = true: .*Flower has secure aggregation for its"
    ) as e:
        config("privacy.secure_aggregation=true")
    assert "set privacy.mode = 'local'" in str(e.value)


def test_a_minimum_cohort_that_cannot_be_met_is_refused(config):
    with pytest.raises(ConfigError, match=r"min_cohort = 5 is more than the 4 clients that take part in a round"):
        config("defence.min_cohort=5")


@pytest.mark.parametrize("mode", [CENTRAL, LOCAL])
def test_a_plan_of_a_private_run_counts_what_travels(config, mode):
    plain = plan(config("method.weighting=uniform"))
    private = plan(config(*mode))
    assert [one.bytes_up for one in private] == [one.bytes_up for one in plain]


# Fewer bits on the wire ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_centrally_private_client_owes_nothing_and_the_server_clips_what_it_decoded(config, tmp_path, dtype):
    changes = (*CENTRAL, "rounds=1", "privacy.noise_multiplier=0.0", "privacy.clip_norm=0.01", f"network.dtype={dtype}")
    wanted = config(*changes)
    experiment = build(wanted)
    assert experiment.method.exchanges[0].wire == Wire(dtype, feedback=False)
    _, after, memories = Record.open(run(wanted, tmp_path / "central")).load_checkpoint()
    assert memories == {}
    before = experiment.method.init(experiment.rng.child("init"))["params"]
    moved = math.sqrt(squared_norm(sub(after["params"], before)))
    assert 0.001 < moved <= 0.01 * (1 + 1e-4), "a mean of updates that are no longer than the bound"


def test_locally_private_clients_round_what_is_noisy_already_and_owe_nothing_else(config, tmp_path):
    changes = (*LOCAL, "rounds=1", "privacy.noise_multiplier=2.0", "privacy.test_key=1", "head.policy=local")
    full = build(config(*changes))
    wanted = config(*changes, "network.dtype=int8")
    short = build(wanted)
    (exchange,) = short.method.exchanges
    assert exchange.wire == Wire("int8")
    state = full.method.init(full.rng.child("init"))
    order = full.method.exchanges[0].ask(state, Turn(0, full.federation.profiles, Rng(3)))[0]
    sent = lowered({0: order}, exchange.wire)[0]
    reply, memory = perform(exchange, short.clients[0], 0, sent, {})
    noisy, _ = perform(full.method.exchanges[0], full.clients[0], 0, raised(sent, exchange.wire), {})
    assert noisy.params.keys() == memory[WIRE]["fit"].keys() == order.params.keys() & noisy.params.keys()
    taken = raised(sent, exchange.wire).params
    for name, owed in memory[WIRE]["fit"].items():  # of the noisy update; nothing of the one beneath it
        decoded = lengthened(reply.params[f"{name}:float32"], reply.params[f"{name}:scale"])
        torch.testing.assert_close(decoded + owed, (noisy.params[name] - taken[name]).double(), rtol=0, atol=1e-5)
    assert len(read_rounds(run(wanted, tmp_path / "local"))) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_defences_and_robust_rules_go_with_fewer_bits(config, tmp_path, dtype):
    changes = ("aggregation.rule=median", "defence.max_update_norm=100.0", "rounds=2", f"network.dtype={dtype}")
    lines = read_rounds(run(config(*changes), tmp_path / dtype))
    assert all(not line["exchanges"][0]["dropped"] for line in lines)
    with pytest.raises(RoundError, match=r"the update's norm is .*; at most 1e-05 is allowed"):
        run(config(*changes, "defence.max_update_norm=1e-5"), tmp_path / "far")
