"""Well-formed replies that mean harm, against every method, rule and wrapper: no exception, no number that is none."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hostile import Attack, attacked
from promises import Build, Setup
from small_federation import VIT, small
from test_contract import ROWS, SOON, real

from fedquilt.aggregate.alignment.wrapper import with_alignment
from fedquilt.aggregate.robust import aggregate_rule
from fedquilt.aggregate.server_optimizer import with_server_optimizer
from fedquilt.aggregate.settings import AlignSettings, RuleSettings, ServerOptimizer
from fedquilt.client import Training
from fedquilt.core.bounds import moved_far
from fedquilt.core.defence import UNBOUNDED, Defence
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Reply
from fedquilt.core.wire import with_wire_dtype
from fedquilt.core.wrap import with_received_scores
from fedquilt.methods import METHODS
from fedquilt.privacy.noise import with_central_dp, with_local_dp


def ruled(rule: str, name: str = "fedit", *, clients: int = 5, **settings) -> Build:
    """A layered method with one of the robust rules in place of the mean."""

    def build() -> Setup:
        training = Training(steps=1, epochs=None, batch_size=4)
        scene = small(VIT, budgets=(4,) * clients, sizes=(5, 8, 6, 7, 9)[:clients], training=training)
        found = aggregate_rule(RuleSettings(rule, trim_share=0.4, clip_norm=0.5))
        federation = replace(scene.federation, aggregate=found)
        return Setup(METHODS[name](federation, **settings), federation.profiles, scene.clients)

    return build


def wrapped(build: Build, change) -> Build:
    def made() -> Setup:
        setup = build()
        return setup._replace(method=change(setup))

    return made


def _aligned(setup: Setup, rule: str):
    settings = AlignSettings(rule, align_equalise=rule == "soft")
    return with_alignment(setup.method, setup.profiles, lambda name: "lora" in name, settings, groups="client")


FIT = real("fedit")
WRAPPED = {
    **{f"fedit-{rule}": ruled(rule) for rule in ("median", "trimmed-mean", "clipped-mean")},
    "fed-hello-median": ruled("median", "fed-hello", clients=3, allocation="rgd"),
    **{
        f"fedit-aligned-{rule}": wrapped(FIT, lambda setup, rule=rule: _aligned(setup, rule))
        for rule in ("projection", "reference", "soft", "mean")
    },
    **{
        f"fedra-{kind}": wrapped(
            real("fedra"), lambda setup, kind=kind: with_server_optimizer(setup.method, ServerOptimizer(kind))
        )
        for kind in ("momentum", "adam", "yogi")
    },
    "fed-hello-received": wrapped(
        real("fed-hello", scores_from="clients", **SOON), lambda setup: with_received_scores(setup.method)
    ),
    "fedit-local-noise": wrapped(
        FIT, lambda setup: with_local_dp(setup.method, clip_norm=1.0, noise_multiplier=1.0, test_key=1)
    ),
    "hetlora-local-noise-int8": wrapped(
        real("hetlora", ranks=(2, 4, 3)),
        lambda setup: with_wire_dtype(
            with_local_dp(setup.method, clip_norm=1.0, noise_multiplier=1.0, test_key=1), "int8"
        ),
    ),
    "fedit-central-noise": wrapped(
        FIT, lambda setup: with_central_dp(setup.method, clip_norm=1.0, noise_multiplier=1.0, test_key=1)
    ),
    "h2tune-int8": wrapped(ROWS["h2tune"].build, lambda setup: with_wire_dtype(setup.method, "int8")),
    "flexlora-bfloat16": wrapped(ROWS["flexlora"].build, lambda setup: with_wire_dtype(setup.method, "bfloat16")),
}
TABLE: Mapping[str, Build] = {name: row.build for name, row in ROWS.items()} | WRAPPED


@pytest.mark.parametrize("name", TABLE)
def test_no_reply_ends_a_merge_or_leaves_what_is_no_number(name):
    counts = attacked(TABLE[name], range(2), num_rounds=2)
    assert counts["hostile"] > 0
    assert counts["merges"] >= 4


FREE = [
    "fedit",
    "flora",
    "flexlora",
    "lora-fair",
    "hetlora",
    "fedrot-lora",
    "florg",
    "fedrpca",
    "h2tune-common-ends",
    "fedra-adam",
]


@pytest.mark.parametrize("name", FREE)
def test_nor_without_the_bounds_of_the_cohort(name):
    counts = attacked(TABLE[name], range(2), num_rounds=3, bounds=UNBOUNDED)
    assert counts["bounded"] == 0
    assert counts["merges"] >= 6


@pytest.mark.parametrize("name", ["fedcollm", "fedmkt"])
def test_models_that_the_server_trains_survive_students_that_make_them_diverge(name):
    counts = attacked(TABLE[name], range(100, 102), num_rounds=4, bounds=Defence(max_weight_share=0.5))
    assert counts["hostile"] > 0
    assert counts["merges"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [Defence(max_weight_share=0.5), UNBOUNDED], ids=["bounded", "free"])
def test_twenty_thousand_hostile_replies(bounds):
    total = Counter[str]()
    for name, build in TABLE.items():
        total += attacked(build, range(100, 115), num_rounds=4, bounds=bounds)
        assert total["hostile"] > 0, name
    assert total["hostile"] >= 10_000


# Honest clients among them ------------------------------------------------------------


def outcome(build: Build, bounds: Defence, seed: int, *, num_bad: int = 2):
    """What a round was sent, its honest replies, and the tensors after it, where so many of all clients mean harm."""
    setup, rng = build(), Rng(seed).child("outcome")
    ids = [profile.id for profile in setup.profiles]
    bad = set(ids[seed % len(ids) :][:num_bad] + ids[: max(0, seed % len(ids) + num_bad - len(ids))])
    attack = Attack(setup, lambda client, number: client in bad, rng)
    start = setup.method.init(rng.child("run").child("init"))["params"]
    (done,) = attack.run(1, bounds)
    taken = {client: reply for client, reply in attack.sent.items() if client in done.traffic[0].bytes_up}
    fair = {client: reply for client, reply in taken.items() if client not in bad}
    assert len(fair) == len(ids) - num_bad
    return start, taken, fair, done.state["params"]


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_two_of_five_never_take_a_coordinate_out_of_the_range_of_the_honest(rule):
    for seed in range(25):
        _, taken, fair, after = outcome(ruled(rule), UNBOUNDED, seed)
        if rule == "trimmed-mean" and len(taken) < 5:
            continue  # of four clients, a share of 0.4 cuts one on each side
        for name in next(iter(fair.values())).params:
            values = torch.stack([reply.params[name] for reply in fair.values()])
            assert bool((after[name] >= values.amin(0) - 1e-6).all()), (seed, name)
            assert bool((after[name] <= values.amax(0) + 1e-6).all()), (seed, name)


def test_nobody_moves_a_clipped_mean_by_more_than_the_clip():
    for seed in range(10):
        start, _, _, after = outcome(ruled("clipped-mean"), UNBOUNDED, seed)
        assert float(sum((after[n] - start[n]).double().square().sum() for n in start)) ** 0.5 <= 0.5 * (1 + 1e-6)


def test_a_mean_moves_by_no_more_than_the_ratio_times_the_median_of_honest_updates():
    build, ratio = ruled("mean"), 10.0
    fit = build().method.exchanges[0]
    for seed in range(25):
        start, _, fair, after = outcome(build, Defence(max_norm_ratio=ratio, max_weight_share=0.5), seed)
        sent = Reply(0, {name: after[name] for name in next(iter(fair.values())).params}, 1.0)
        order = Order(start, {"layers": [0, 1, 2, 3]})
        moves = sorted(moved_far(fit, order, reply).rms for reply in fair.values())
        assert moved_far(fit, order, sent).rms <= ratio * moves[-1]
