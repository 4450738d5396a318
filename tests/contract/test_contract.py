"""The table of methods x promises, and what each toy proves about the contract."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from parties import apart_by_columns
from promises import PROMISES, Build, Setup, copied, fault, is_tree, play, same, undisturbed
from small_federation import BERT, GPT2, LLAMA, VIT, WIDE, anchored, beside, common, mixtures, served, several, small
from torch.nn.functional import cross_entropy
from toys import (
    Party,
    changed,
    distillation_setup,
    embedded,
    fedavg,
    fedavg_setup,
    groups_setup,
    local_bias_setup,
    logits_of,
    profiles_of,
    regression_clients,
    short,
    three_clusters,
    vertical_setup,
)

from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.aggregate.lowrank.rules import residual_rule, stack_rule, svd_rule
from fedquilt.client import Training
from fedquilt.core.factors import MAGNITUDE
from fedquilt.core.loop import rounds
from fedquilt.core.method import Exchange
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Reply, Turn
from fedquilt.core.wrap import with_local
from fedquilt.methods import METHODS, register, registry, traits_of
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.methods.layered import everyone, layered

FLAT, BROAD = (model.replace(layers, "layers=2") for model, layers in ((VIT, "layers=4"), (WIDE, "layers=3")))


class Row(NamedTuple):
    """One method of the table; ``exempt`` says why a promise has no meaning for it."""

    build: Build
    exempt: dict[str, str] = {}  # noqa: RUF012  (never changed)


TOYS = {
    "fedavg": Row(fedavg_setup),
    "fedavg-local-bias": Row(local_bias_setup),
    "vertical": Row(
        vertical_setup,
        {
            "echo_changes_nothing": "what goes up is an embedding, what comes down its gradient",
            "merge_lets_replies_go": "the joint loss needs every party's embedding at once",
        },
    ),
    "distillation": Row(
        distillation_setup, {"echo_changes_nothing": "the server trains on its own labels in every round"}
    ),
    "groups": Row(groups_setup),
}


def real(
    name: str,
    *,
    model: str = VIT,
    budgets=(1, 2, 4),
    proxy: int = 0,
    local_head: bool = False,
    ranks=None,
    rule=None,
    steps=1,
    every=False,
    dora=False,
    **settings,
) -> Build:
    """A method of the library among three clients that train a real transformer."""

    def build() -> Setup:
        training = Training(steps=steps, epochs=None, batch_size=4, learning_rate=0.05)
        rank = 2 if ranks is None else max(ranks)
        more = {"rank": rank, "ranks": ranks, "rule": rule, "every": every, "dora": dora}
        scene = small(model, budgets=budgets, sizes=(5, 8, 6)[: len(budgets)], proxy=proxy, training=training, **more)
        method = METHODS[name](scene.federation, **settings)
        if local_head:
            method = with_local(method, scene.layout.head)
        # what a method keeps beside its tensors (scores, a count of rounds) may change though no client moved
        return Setup(method, scene.federation.profiles, scene.clients, learned).bound()

    return build


def learned(state):
    """The server's tensors, of all and of each architecture, and what was merged into the base."""
    return [state["params"], state.get("ends"), state["base"]["log"] if "base" in state else None]


def apart(name: str, models=(VIT, WIDE), *, mixed: bool = False, proxy: int = 0, rule=None, **settings) -> Build:
    """A method of the library among clients of unlike architectures, in each of them apart."""

    def build() -> Setup:
        training = Training(steps=1, epochs=None, batch_size=4, learning_rate=0.05)
        scene = several(models, mixed=mixed, proxy=proxy, training=training, rule=rule)
        method = by_architecture(lambda federation: METHODS[name](federation, **settings), scene.federation)

        def all_learned(state):
            return [learned(own) for own in state["apart"].values()]

        return Setup(method, scene.federation.profiles, scene.clients, all_learned).bound()

    return build


def shared(models=(VIT, WIDE), *, name: str = "heterotune", trained: str = "all", **settings) -> Build:
    """A method that takes several architectures as they are, among clients with mixtures of adapters."""

    def build() -> Setup:
        training = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
        mixed = settings.get("mixed", False)
        budgets = (1, 2, 3) if len(models) == 1 else (1, 3)
        scene = mixtures(models, budgets=budgets, training=training, trained=trained, mixed=mixed)
        own = {key: value for key, value in settings.items() if key != "mixed"}
        return Setup(METHODS[name](scene.federation, **own), scene.federation.profiles, scene.clients, learned).bound()

    return build


def coordinated(
    models=(VIT, WIDE), *, name="heterotune", private_rank: int = 0, mixed=False, parts="together", **settings
) -> Build:
    """A method among clients with adapters in common coordinates."""

    def build() -> Setup:
        training = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
        scene = common(models, training=training, private_rank=private_rank, mixed=mixed, parts=parts)
        method = METHODS[name](scene.federation, **settings)
        made = with_axes(method, scene.federation, 3)
        return Setup(made, scene.federation.profiles, scene.clients, learned).bound()

    return build


def aligned(models=(VIT, WIDE), *, common_head: bool = False, mixed: bool = False, **settings) -> Build:
    """Co-LoRA among clients with adapters that are aligned to the smallest model."""

    def build() -> Setup:
        training = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
        scene = anchored(models, training=training, common_head=common_head, mixed=mixed)
        made = with_axes(METHODS["co-lora"](scene.federation, **settings), scene.federation, 3)
        return Setup(made, scene.federation.profiles, scene.clients, learned).bound()

    return build


def joined(name: str, models=(VIT, WIDE), **settings) -> Build:
    """A method in each architecture apart, beside cores and a head in common coordinates that all share."""

    def build() -> Setup:
        training = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
        scene = common(models, training=training, private_rank=2)
        made = beside(name, scene.federation, **settings)

        def all_learned(state):
            return [state["shared"]["params"], *(learned(own) for own in state["apart"].values())]

        return Setup(made, scene.federation.profiles, scene.clients, all_learned).bound()

    return build


def across(name: str, models=(VIT, WIDE), *, mixed: bool = False, every: bool = False, **settings) -> Build:
    """A method of the library that takes clients of unlike architectures all together."""

    def build() -> Setup:
        training = Training(steps=3, epochs=None, batch_size=4, learning_rate=0.05)
        scene = several(models, mixed=mixed, training=training, every=every)
        method = METHODS[name](scene.federation, **settings)
        return Setup(method, scene.federation.profiles, scene.clients, learned).bound()

    return build


def taught(name: str, **settings) -> Build:
    """A method whose server owns a model and data, among clients with language models."""

    def build() -> Setup:
        made = served(name, **settings)
        return Setup(made.method, made.federation.profiles, made.clients, learned)

    return build


def default_row(name: str) -> Row:
    """The row of a method that has none of its own: its default settings, in the scene that its traits ask for."""
    traits = traits_of(name)
    at_once = ALL_AT_ONCE if traits.rule is not None else {}
    if traits.needs == "mixture":
        return Row(shared(name=name), at_once)
    if traits.needs_server:
        return Row(taught(name))
    return Row(across(name) if traits.across else real(name, proxy=3), at_once)


def method_of(row: str) -> str:
    """The method of a row: the longest name that the row's begins with."""
    return max((name for name in METHODS if f"{row}-".startswith(f"{name}-")), key=len)


ALL_AT_ONCE = {"merge_lets_replies_go": "a module's factors are combined when those of all clients are there"}
AT_FIRST = {"merge_lets_replies_go": "the axes need a basis of each architecture at once, in the first round"}
tuned = partial(coordinated, name="h2tune", ends="common")
SOON = {"warmup": 1, "refresh": 1}  # so that every kind of round comes in three
REAL = {
    "fed-hello-gd": Row(real("fed-hello", allocation="gd")),
    "fed-hello-rgd": Row(real("fed-hello", model=LLAMA, budgets=(1, 2, 3), allocation="rgd")),
    "fed-hello-fim-server": Row(real("fed-hello", proxy=3, **SOON)),
    "fed-hello-fim-clients": Row(real("fed-hello", scores_from="clients", **SOON)),
    "fed-hello-local-head": Row(real("fed-hello", scores_from="clients", local_head=True, **SOON)),
    "fed-hello-released": Row(real("fed-hello-released", proxy=3, **SOON)),
    "h2tune": Row(across("h2tune", (VIT, LLAMA), private_steps=1)),
    "h2tune-mixed-drawn": Row(across("h2tune", mixed=True, selection="drawn", alignment="slots", joint_rounds=0)),
    "h2tune-alone-strongest": Row(real("h2tune", selection="strongest", deviation=0.1, reselect=2)),
    "h2tune-common-ends": Row(across("h2tune", (VIT, LLAMA), mixed=True, ends="architecture", private_steps=1)),
    "h2tune-aligned": Row(across("h2tune", mixed=True, align="projection", deviation=0.1)),
    "h2tune-noise": Row(across("h2tune", deviation=0.1, bank="noise", joint_rounds=9)),
    "h2tune-common": Row(tuned(private_rank=2, private_steps=1), AT_FIRST),
    "h2tune-common-cores-text": Row(tuned((LLAMA, VIT), joint_rounds=0, server_rate=0.5, free_after=1), AT_FIRST),
    "rolora": Row(real("rolora", model=LLAMA, budgets=(1, 2, 3))),
    "fedsa-lora": Row(real("fedsa-lora")),
    "fedsa-lora-common-head": Row(real("fedsa-lora", local_head=False)),
    "flexlora": Row(real("flexlora", ranks=(2, 4, 3)), ALL_AT_ONCE),
    "flexlora-even": Row(real("flexlora", model=GPT2, budgets=(1, 2, 3), split="even"), ALL_AT_ONCE),
    "hetlora": Row(real("hetlora", ranks=(2, 4, 3), gamma=0.75), ALL_AT_ONCE),
    "hetlora-segment": Row(real("hetlora", ranks=(4, 2, 2), normalize="segment", tail_penalty=0.01), ALL_AT_ONCE),
    "flora": Row(real("flora", ranks=(2, 4, 3)), ALL_AT_ONCE),
    "fedex-lora": Row(real("fedex-lora"), ALL_AT_ONCE),
    "fedex-lora-1": Row(real("fedex-lora", model=LLAMA, budgets=(1, 2, 3), residual_rank=1), ALL_AT_ONCE),
    "fedex-lora-0": Row(real("fedex-lora", residual_rank=0), ALL_AT_ONCE),
    "fed-hello-flora": Row(real("fed-hello", proxy=3, ranks=(2, 4, 3), rule=stack_rule(), **SOON), ALL_AT_ONCE),
    "fed-hello-fedex-clients": Row(
        real("fed-hello", scores_from="clients", rule=residual_rule(2), **SOON), ALL_AT_ONCE
    ),
    "fedra-flora": Row(real("fedra", rule=stack_rule()), ALL_AT_ONCE),
    "fedra-flexlora": Row(real("fedra", ranks=(2, 4, 3), rule=svd_rule()), ALL_AT_ONCE),
    "fedra": Row(real("fedra")),
    "fedra-whole": Row(real("fedra", drop_layers=False)),
    "exclusive": Row(real("exclusive", budgets=(4, 2, 4))),
}
HETEROTUNE = {
    "heterotune": Row(shared()),
    "heterotune-own": Row(shared((VIT, LLAMA), trained="own", mu=0.1)),
    "heterotune-three": Row(shared((VIT, BERT, GPT2), mu=0.1, decay=0.01, per="global", equalise=True)),
    "heterotune-reference-mixed": Row(shared(mixed=True, align="reference", weighting="uniform")),
    "heterotune-not-aligned": Row(shared(align="none")),
    "heterotune-not-shared": Row(shared(share=False)),
    "heterotune-common": Row(coordinated(align="none"), AT_FIRST),
    "heterotune-common-apart": Row(coordinated(private_rank=2, parts="apart", align="none"), AT_FIRST),
    "heterotune-common-private-text": Row(coordinated((LLAMA, VIT), private_rank=2), AT_FIRST),
    "heterotune-one": Row(shared((BERT,), align="soft")),
}
CO_LORA = {
    "co-lora": Row(aligned(), AT_FIRST),
    "co-lora-text-mixed": Row(aligned((LLAMA, VIT), mixed=True, weighting="uniform"), AT_FIRST),
    "co-lora-rela-common-head": Row(aligned(common_head=True, aggregation="rela"), AT_FIRST),
}
BRIEF = {"candidates": 3, "path_tokens": 3, "path_bytes": 12}
LADA = {
    "lada": Row(taught("lada", filter="linear-ucb", **BRIEF)),
    "lada-verified-down": Row(taught("lada", direction="down", verified=True, sample_reward="paper", **BRIEF)),
}
SCHEMES = {
    "fedmkt": Row(
        taught("fedmkt", candidates=3, k=4, answer_tokens=4),
        {"echo_changes_nothing": "what goes down are the server's predictions, what comes up the clients'"},
    ),
    "fedcot": Row(
        taught("fedcot", candidates=3, path_tokens=3, path_bytes=12),
        {"echo_changes_nothing": "the server's rationales go down, and adapters alone come up"},
    ),
    "fedcollm": Row(
        taught("fedcollm", candidates=3, k=4, answer_tokens=4),
        {"echo_changes_nothing": "the server trains the average in every round"},
    ),
}
OF_PARTIES = {
    "echo_changes_nothing": "what goes down are priors and gradients, what comes up embeddings",
    "merge_lets_replies_go": "a row is learned from what all parties know of it",
}
PARTIES = {
    name: Row(partial(apart_by_columns, name), OF_PARTIES) for name in sorted(METHODS) if traits_of(name).vertical
}
PARTIES |= {"proto-evfl-views": Row(partial(apart_by_columns, "proto-evfl", self_supervised=0.5), OF_PARTIES)}
REAL |= HETEROTUNE | CO_LORA | LADA | SCHEMES | PARTIES
REAL |= {name: default_row(name) for name in sorted({*METHODS} - {method_of(row) for row in REAL})}
REAL |= {"fedit-dora": Row(real("fedit", model=FLAT, budgets=(1, 2, 2), every=True, dora=True))}
APART = {
    "fedit-apart": Row(apart("fedit")),
    "fedit-llama-bert": Row(apart("fedit", (LLAMA, BERT))),
    "fedit-apart-mixed": Row(
        apart("fedit", mixed=True),
        {"merge_lets_replies_go": "an architecture's clients have no neighbouring numbers, so replies wait for others"},
    ),
    "fed-hello-apart": Row(apart("fed-hello", (VIT, LLAMA), proxy=3, **SOON)),
    "flora-apart": Row(apart("flora", (LLAMA, BERT)), ALL_AT_ONCE),
    "fedsa-lora-apart": Row(apart("fedsa-lora", (BERT, WIDE))),
    "fedit-common": Row(joined("fedit"), AT_FIRST),
    "flora-common": Row(joined("flora", (LLAMA, VIT)), AT_FIRST),
    "fed-hello-common": Row(joined("fed-hello", scores_from="clients", **SOON), AT_FIRST),
    "local-only-apart": Row(apart("local-only", (VIT, WIDE, LLAMA))),
}
SHORT = {
    f"{name}-{dtype}": Row(short((TOYS | REAL | APART)[name].build, dtype), (TOYS | REAL | APART)[name].exempt)
    for name, dtype in (
        ("fedavg", "int8"),
        ("fedavg-local-bias", "bfloat16"),
        ("vertical", "int8"),
        ("distillation", "bfloat16"),
        ("groups", "int8"),
        ("fed-hello-local-head", "int8"),
        ("fedra", "bfloat16"),
        ("local-only", "int8"),
        ("fedit-llama-bert", "int8"),
        ("heterotune", "int8"),
        ("heterotune-own", "bfloat16"),
    )
}
CHANGED = {  # in the first of its steps nothing pulls a client back, so there are two
    "fedavg-yogi": changed(fedavg_setup, kind="yogi"),
    "fedavg-local-bias-momentum": changed(local_bias_setup, kind="momentum"),
    "fedit-proximal": changed(real("fedit", steps=2), mu=0.5),
    "fed-hello-proximal-adam": changed(real("fed-hello", proxy=3, steps=2, **SOON), mu=0.5, kind="adam"),
    "fed-hello-local-head-momentum": changed(
        real("fed-hello", scores_from="clients", local_head=True, **SOON), kind="momentum"
    ),
    "fedra-proximal-momentum": changed(real("fedra", steps=2), mu=0.5, kind="momentum"),
    "fedsa-lora-proximal-yogi": changed(real("fedsa-lora", steps=2), mu=0.5, kind="yogi"),
    "rolora-momentum-int8": short(changed(real("rolora", model=LLAMA, budgets=(1, 2, 3)), kind="momentum"), "int8"),
}


def every(name: str, *, model: str = FLAT, **more) -> Build:
    """A method of the library with adapters at every linear module of a model of two blocks."""
    return real(name, model=model.replace("layers=3", "layers=2"), budgets=(1, 2), every=True, **more)


WITH_DORA = {  # every linear module has a magnitude
    "exclusive": {"model": LLAMA},
    "fed-hello": {"proxy": 3, **SOON},
    "fed-hello-released": {"proxy": 3, **SOON},
    "fedrot-lora": {},
    "fedrpca": {},
    "fedra": {"model": LLAMA},
    "full": {"model": GPT2},
    "hetlora": {"ranks": (2, 3), "gamma": 0.75},
    "local-only": {},
    "straggler": {"model": BERT},
}
ALL_LINEAR = {
    "fedex-lora": {},
    "fedsa-lora": {},
    "ffa-lora": {},
    "flexlora": {"ranks": (2, 3)},
    "flora": {"ranks": (2, 3), "model": GPT2},
    "florg": {"model": GPT2},
    "lora-fair": {},
    "rolora": {"model": LLAMA},
}
ADAPTED = {
    **{f"{name}-dora": every(name, dora=True, **more) for name, more in WITH_DORA.items()},
    **{f"{name}-all-linear": every(name, **more) for name, more in ALL_LINEAR.items()},
    "h2tune-all-linear": across("h2tune", (FLAT, BROAD), every=True),
}
MOST_TOLD = ("echo_changes_nothing", "resumes_to_the_bit")
"""The promises that say most about other tensors in the same method."""
ROWS = TOYS | REAL | APART | SHORT | {name: Row(build) for name, build in CHANGED.items()}
CELLS = [(row, promise) for row in ROWS for promise in PROMISES if promise not in ROWS[row].exempt]


@pytest.mark.parametrize(("row", "promise"), CELLS, ids=[f"{row}-{promise}" for row, promise in CELLS])
def test_promise(row, promise):
    PROMISES[promise](ROWS[row].build)


@pytest.mark.parametrize("row", {method_of(row): row for row in reversed(REAL)}.values())  # the first of each method
def test_gradient_checkpointing_changes_no_bit(row):
    """Two rounds, in which all kinds of steps come: turns, agreement, cores, blocks that are left out, dropout."""
    setup, plain = REAL[row].build(), undisturbed(REAL[row].build, num_rounds=2)
    clients = {
        id: replace(client, training=replace(client.training, gradient_checkpointing=True))
        for id, client in setup.clients.items()
    }
    again = play(setup._replace(clients=clients), num_rounds=2)
    assert same(again.states, plain.states)
    assert same(again.memories, plain.memories)
    for client in clients.values():
        assert not any("forward" in vars(module) for module in client.bench.model.modules())


@pytest.mark.parametrize("row", ADAPTED)
def test_every_method_keeps_its_promises_with_every_linear_module_and_with_dora(row):
    for promise in MOST_TOLD:
        PROMISES[promise](ADAPTED[row])


def test_with_dora_only_the_magnitudes_of_trained_layers_move():
    setup = every("fedit", dora=True)()
    first, last = (state["params"] for state in play(setup, num_rounds=1).states)
    layers = setup.clients[0].bench.layout.depth
    magnitudes = [name for name in first if name.endswith(MAGNITUDE)]
    moved = {layers[name] for name in magnitudes if not torch.equal(first[name], last[name])}
    assert len(magnitudes) == 6 * 2
    assert moved == {1}  # the deepest layer alone, as many as the lowest budget


def test_every_method_of_the_library_is_in_the_table():
    assert {row.build().method.name for row in REAL.values()} == set(METHODS)


def scaled(federation, *, step: float = 0.5):
    """A method as another package may bring it: it goes only part of the way to the clients' mean."""
    trunk = layered("scaled", federation, everyone(tuple(range(federation.layout.num_layers))))
    (fit,) = trunk.exchanges

    def merge(state, replies):
        after = fit.merge(state, replies)["params"]
        return {**state, "params": {n: torch.lerp(old, after[n], step) for n, old in state["params"].items()}}

    return trunk._replace(exchanges=(fit._replace(merge=merge),))


def test_a_method_that_was_registered_gets_a_row_and_keeps_every_promise(monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    register("scaled", scaled)
    row = default_row("scaled")
    assert method_of("scaled") == row.build().method.name == "scaled"
    for promise in PROMISES.keys() - row.exempt:
        PROMISES[promise](row.build)


def test_the_table_is_whole():
    assert len(CELLS) == len(ROWS) * len(PROMISES) - sum(len(row.exempt) for row in ROWS.values())
    for row in ROWS.values():
        assert row.exempt.keys() <= PROMISES.keys()
        assert all(len(reason) > 10 for reason in row.exempt.values())
    for promise in PROMISES:
        assert sum(promise not in row.exempt for row in ROWS.values()) >= 2


# The promises themselves can fail ------------------------------------------------------------


def broken(name: str, **change) -> Build:
    def build() -> Setup:
        setup = fedavg_setup()
        (fit,) = setup.method.exchanges
        made = {key: make(fit) for key, make in change.items()}
        return setup._replace(method=setup.method._replace(name=name, exchanges=(fit._replace(**made),)))

    return build


def _ask_that_writes(fit: Exchange):
    def ask(state, turn: Turn):
        state["params"]["bias"].add_(1.0)
        return fit.ask(state, turn)

    return ask


def _work_that_writes(fit: Exchange):
    def work(client: Party, order: Order, memory):
        order.params["bias"].add_(1.0)
        return fit.work(client, order, memory)

    return work


def _work_on_a_global_generator(fit: Exchange):
    def work(client: Party, order: Order, memory):
        reply, memory = fit.work(client, order, memory)
        return replace(reply, params={n: t + torch.rand(()) for n, t in reply.params.items()}), memory

    return work


def _work_that_counts_runs(fit: Exchange):
    runs = []

    def work(client: Party, order: Order, memory):
        reply, memory = fit.work(client, order, memory)
        runs.append(client.id)
        return replace(reply, params={n: t + len(runs) for n, t in reply.params.items()}), memory

    return work


def _work_that_keeps_a_tuple(fit: Exchange):
    def work(client: Party, order: Order, memory):
        return fit.work(client, order, memory)[0], {"rows": (1, 2)}

    return work


def _work_that_sends_its_memory(fit: Exchange):
    def work(client: Party, order: Order, memory):
        reply, _ = fit.work(client, order, {})
        return reply, {"params": {"own": reply.params["weight"]}}

    return work


def _merge_that_writes(fit: Exchange):
    def merge(state, replies: Iterable[Reply]):
        after = fit.merge(state, replies)
        state["params"]["weight"].copy_(after["params"]["weight"])
        return state

    return merge


def _merge_that_reads_twice(fit: Exchange):
    def merge(state, replies: Iterable[Reply]):
        after = fit.merge(state, replies)
        return {**after, "num": sum(1 for _ in replies)}

    return merge


def _merge_that_hoards(fit: Exchange):
    return lambda state, replies: fit.merge(state, list(replies))


def _merge_that_divides_by_the_cohort(fit: Exchange):
    def merge(state, replies: Iterable[Reply]):
        params = [reply.params["weight"] for reply in replies]
        return {"params": {**state["params"], "weight": sum(params) / 3.0}}

    return merge


def _merge_that_needs_everyone(fit: Exchange):
    def merge(state, replies: Iterable[Reply]):
        kept = {reply.client: reply for reply in replies}
        return fit.merge(state, [kept[k] for k in range(4)])

    return merge


@pytest.mark.parametrize(
    ("promise", "error", "change"),
    [
        ("ask_and_view_read_only", AssertionError, {"ask": _ask_that_writes}),
        ("work_changes_nothing_it_was_given", AssertionError, {"work": _work_that_writes}),
        ("same_seed_same_bits", AssertionError, {"work": _work_on_a_global_generator}),
        ("resumes_to_the_bit", AssertionError, {"work": _work_that_counts_runs}),
        ("state_and_memory_are_trees", AssertionError, {"work": _work_that_keeps_a_tuple}),
        ("the_private_part_stays_home", AssertionError, {"work": _work_that_sends_its_memory}),
        ("merge_changes_nothing_it_was_given", AssertionError, {"merge": _merge_that_writes}),
        ("a_failed_round_leaves_the_state", AssertionError, {"ask": _ask_that_writes}),
        ("merge_reads_replies_once", AssertionError, {"merge": _merge_that_reads_twice}),
        ("merge_lets_replies_go", AssertionError, {"merge": _merge_that_hoards}),
        ("echo_changes_nothing", AssertionError, {"merge": _merge_that_divides_by_the_cohort}),
        ("survives_one_client_missing", KeyError, {"merge": _merge_that_needs_everyone}),
    ],
)
def test_a_method_that_breaks_a_promise_is_caught(promise, error, change):
    with pytest.raises(error):
        PROMISES[promise](broken(promise, **change))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": [1, 2.0, "x", None, True, torch.ones(2)], "b": {}}, None),
        ({"a": {1: 2}}, r"state.a has the keys [1], not strings"),
        ({"a": [0, (1, 2)]}, "state.a[1] is a tuple"),
        ({"a": Rng(0)}, "state.a is a Rng"),
        ({"a": torch.ones(1, requires_grad=True)}, "state.a carries a gradient graph"),
        ({"a": torch.ones(1).numpy()}, "state.a is a ndarray"),
        ({"a": torch.ones(1).numpy()[0]}, "state.a is a float32"),
    ],
)
def test_the_tree_walker_names_the_first_fault(tree, expected):
    assert fault(tree, "state") == expected
    assert is_tree(tree) == (expected is None)


def test_same_means_the_same_bits():
    assert same({"a": torch.tensor(float("nan"))}, {"a": torch.tensor(float("nan"))})
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same({"a": 1}, {"a": 1.0})
    assert not same([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)])


# Federated averaging ------------------------------------------------------------


def test_fedavg_with_one_full_batch_step_is_a_gradient_step_on_all_rows():
    clients = regression_clients()
    setup = Setup(fedavg(4, steps=1, rate=0.1), profiles_of(clients), clients)
    played = play(setup, num_rounds=4)
    x, y = (torch.cat([getattr(c, part) for c in clients.values()]) for part in ("inputs", "labels"))
    weight, bias = (played.states[0]["params"][n].clone().requires_grad_() for n in ("weight", "bias"))
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        ((x @ weight + bias - y) ** 2).mean().backward()
        optimizer.step()
    torch.testing.assert_close(played.states[-1]["params"], {"weight": weight.detach(), "bias": bias.detach()})


def test_a_local_bias_never_travels_and_is_each_clients_own():
    setup = local_bias_setup()
    played = play(setup)
    assert set(played.states[-1]["params"]) == {"weight"}
    assert set(setup.method.view(played.states[-1], setup.profiles[0]).params) == {"weight"}
    biases = [memory["params"]["bias"].item() for memory in played.memories.values()]
    assert len(set(biases)) == 4
    assert all(moved.bytes_up == dict.fromkeys(range(4), 32) for (moved,) in played.traffic)


# Vertical: two exchanges, private encoders ------------------------------------------------------------


def centrally_trained(setup: Setup, *, seed: int, num_rounds: int) -> tuple[dict, dict]:
    """The same split network in one place, trained with autograd end to end and torch's own SGD."""
    start = copied(setup.method.init(Rng(seed).child("init")))
    head = {name: tensor.requires_grad_() for name, tensor in start["params"].items()}
    encoders = {
        k: {n: t.clone().requires_grad_() for n, t in party.initial.items()} for k, party in setup.clients.items()
    }
    everything = [*head.values(), *(t for encoder in encoders.values() for t in encoder.values())]
    optimizer = torch.optim.SGD(everything, lr=0.2)
    for number in range(num_rounds):
        shuffle = Rng(seed).child("round", number).child("rows").torch()
        rows = torch.randperm(len(start["labels"]), generator=shuffle)[:16]
        joined = torch.cat([embedded(encoders[k], setup.clients[k].inputs[rows]) for k in encoders], dim=1)
        loss = cross_entropy(joined @ head["head.weight"] + head["head.bias"], start["labels"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    detached = {k: {n: t.detach() for n, t in encoder.items()} for k, encoder in encoders.items()}
    return {name: tensor.detach() for name, tensor in head.items()}, detached


def test_joint_training_equals_the_split_network_trained_centrally():
    setup = vertical_setup()
    played = play(setup, seed=3, num_rounds=20)
    head, encoders = centrally_trained(setup, seed=3, num_rounds=20)
    assert (played.states[-1]["params"]["head.weight"] - played.states[0]["params"]["head.weight"]).abs().max() > 0.01
    torch.testing.assert_close(played.states[-1]["params"], head, rtol=0, atol=1e-6)
    for k, memory in played.memories.items():
        assert (memory["params"]["encoder.weight"] - setup.clients[k].initial["encoder.weight"]).abs().max() > 0.01
        torch.testing.assert_close(memory["params"], encoders[k], rtol=0, atol=1e-6)


def test_vertical_training_learns_what_no_party_alone_can():
    setup = vertical_setup()

    def accuracy(state, memories) -> float:
        joined = torch.cat([embedded(memories[k]["params"], setup.clients[k].inputs) for k in sorted(memories)], dim=1)
        logits = joined @ state["params"]["head.weight"] + state["params"]["head.bias"]
        return (logits.argmax(1) == state["labels"]).double().mean().item()

    played = play(setup, num_rounds=150)
    before = accuracy(played.states[0], {k: {"params": c.initial} for k, c in setup.clients.items()})
    after = accuracy(played.states[-1], played.memories)
    assert after > max(0.85, before + 0.15)


def test_neither_encoders_nor_columns_nor_labels_ever_travel():
    setup = vertical_setup()
    orders, replies = recorded(setup)
    assert {name for _, reply in replies for name in reply.params} == {"embedding", "rows"}
    assert {name for _, order in orders for name in order.params} == {"gradient"}
    assert all(not reply.params and not reply.metrics for exchange, reply in replies if exchange == "backprop")
    private = [t for party in setup.clients.values() for t in (party.inputs, *party.initial.values())]
    sent = [t for _, message in orders + replies for t in message.params.values()]
    assert len(sent) == 3 * 3 * 3  # 3 rounds, 3 parties, (embedding, rows, gradient)
    assert {tensor.shape for tensor in sent} == {(16, 4), (16,)}
    assert not any(same(own, tensor) for own in private for tensor in sent)
    labels = setup.method.init(Rng(0))["labels"]
    assert not any(same(labels[r.params["rows"]], t) for e, r in replies if e == "embed" for t in sent)


def test_a_party_that_is_away_from_embed_is_not_asked_for_backprop():
    played = play(vertical_setup(), num_rounds=2, away=lambda client, name, number: client == 1 and number == 1)
    embed, backprop = played.traffic[1]
    assert embed.dropped == {1: "is away"}
    assert sorted(backprop.bytes_down) == [0, 2]
    first = play(vertical_setup(), num_rounds=1)
    assert same(played.memories[1], first.memories[1])  # its encoder is where round 0 left it
    assert not same(played.memories[0], first.memories[0])


def recorded(setup: Setup) -> tuple[list[tuple[str, Order]], list[tuple[str, Reply]]]:
    orders, replies = [], []

    def watched(exchange: Exchange) -> Exchange:
        def work(client, order, memory):
            reply, after = exchange.work(client, order, memory)
            orders.append((exchange.name, order))
            replies.append((exchange.name, reply))
            return reply, after

        return exchange._replace(work=work)

    exchanges = tuple(watched(exchange) for exchange in setup.method.exchanges)
    play(setup._replace(method=setup.method._replace(exchanges=exchanges)))
    return orders, replies


# Distillation: the server owns a model and data ------------------------------------------------------------


def test_the_servers_own_model_learns_from_predictions_alone():
    setup = distillation_setup()
    x, y = three_clusters("held out", 200)

    def accuracy(state) -> float:
        return (logits_of(state["server"]["params"], x).argmax(1) == y).double().mean().item()

    played = play(setup, num_rounds=4)
    assert accuracy(played.states[-1]) > max(0.95, accuracy(played.states[0]))
    assert played.states[-1]["server"]["round"] == 4
    assert played.states[-1]["server"]["params"]["hidden"].shape == (2, 16)
    assert {memory["params"]["hidden"].shape for memory in played.memories.values()} == {(2, w) for w in (6, 7, 8, 9)}


def test_distillation_moves_predictions_only():
    setup = distillation_setup()
    orders, replies = recorded(setup)
    assert {(name, tuple(t.shape)) for _, m in orders + replies for name, t in m.params.items()} == {
        ("logits", (24, 3))
    }
    assert all(not order.settings for _, order in orders)
    played = play(setup)
    assert all(set(moved.bytes_up.values()) == {24 * 3 * 8} for (moved,) in played.traffic)


# Unlike architectures ------------------------------------------------------------


def test_each_architecture_averages_within_and_the_head_across():
    setup = groups_setup()
    _, replies = recorded(setup)
    after = play(setup, num_rounds=1).states[-1]
    first = {reply.client: reply for _, reply in replies[:5]}
    rows = {0: 9, 1: 6, 2: 11, 3: 7, 4: 5}

    def mean(name: str, members: list[int]) -> torch.Tensor:
        return sum(rows[k] * first[k].params[name] for k in members) / sum(rows[k] for k in members)

    torch.testing.assert_close(after["groups"]["narrow"]["narrow.kernel"], mean("narrow.kernel", [0, 3]))
    for name in ("wide.blocks.0.weight", "wide.blocks.1.weight"):
        torch.testing.assert_close(after["groups"]["wide"][name], mean(name, [1, 2, 4]))
    torch.testing.assert_close(after["shared"]["head.weight"], mean("head.weight", [0, 1, 2, 3, 4]))


def test_clients_of_an_architecture_hold_the_tensors_of_its_layout_and_no_other():
    setup = groups_setup()
    orders, replies = recorded(setup)
    narrow, wide = {"narrow.kernel", "head.weight"}, {"wide.blocks.0.weight", "wide.blocks.1.weight", "head.weight"}
    assert len(orders) == len(replies) == 15
    for (_, order), (_, reply) in zip(orders, replies, strict=True):
        expected = narrow if setup.clients[reply.client].architecture == "narrow" else wide
        assert order.params.keys() == reply.params.keys() == expected


def test_an_architecture_without_replies_stays_to_the_bit_while_the_head_moves():
    setup = groups_setup()
    played = play(setup, num_rounds=1, away=lambda client, name, number: client in (0, 3))
    before, after = played.states
    assert same(before["groups"]["narrow"], after["groups"]["narrow"])
    assert not same(before["groups"]["wide"], after["groups"]["wide"])
    assert not same(before["shared"], after["shared"])


@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs_through_the_loop_and_reports_its_traffic(row):
    setup, played = ROWS[row].build(), undisturbed(ROWS[row].build, num_rounds=2)
    assert [[moved.exchange for moved in traffic] for traffic in played.traffic] == [
        [exchange.name for exchange in setup.method.exchanges]
    ] * 2
    assert all(moved.bytes_up.keys() == moved.bytes_down.keys() for traffic in played.traffic for moved in traffic)
    # local-only learns in its clients' memories alone
    assert same(played.states[0], played.states[-1]) == row.startswith("local-only")
    assert not row.startswith("local-only") or all(memory["params"] for memory in played.memories.values())
    assert list(rounds(setup.method, lambda number: setup.profiles, _never, Rng(0), num_rounds=0)) == []


def _never(exchange, orders):
    raise AssertionError("nobody is to be asked")
