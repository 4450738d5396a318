"""Embedded and on Flower (ClientApp, Strategy and serialisation included), every method gives bit-identical results."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from in_process_grid import RUN, InProcessGrid, app_of, cards_of
from parties import apart_by_columns, noised_by_columns
from promises import Played, Setup, copied, play, same
from small_federation import BERT, GPT2, LLAMA, VIT, WIDE, anchored, beside, common, mixtures, served, several, small
from toys import changed, distillation_setup, fedavg_setup, groups_setup, local_bias_setup, short, vertical_setup

from fedquilt.aggregate.axes import rotation
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.aggregate.lowrank.rules import stack_rule
from fedquilt.client import Training
from fedquilt.core.federation import Rule
from fedquilt.core.rng import Rng
from fedquilt.core.wrap import with_local
from fedquilt.engine.flower.client import memory_folder
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.engine.flower.strategy import MethodStrategy
from fedquilt.methods import METHODS, traits_of
from fedquilt.methods.by_architecture import by_architecture

RANKS = (2, 4, 3, 4)
SOON = {"warmup": 1, "refresh": 1}


def real(
    name: str,
    local_head: bool = False,
    model: str | None = None,
    ranks=None,
    rule: Rule | None = None,
    steps: int = 1,
    **settings,
) -> Setup:
    """A method of the library among four clients that train a real transformer, with dropout."""
    more = {} if model is None else {"model": model}
    budgets = (1, 2, 4, 2) if model is None else (1, 2, 3, 2)
    training = Training(steps=steps, epochs=None, batch_size=4, learning_rate=0.05)
    more |= {} if ranks is None else {"rank": max(ranks), "ranks": ranks}
    scene = small(budgets=budgets, sizes=(5, 8, 6, 7), proxy=3, training=training, rule=rule, **more)
    method = METHODS[name](scene.federation, **settings)
    if local_head:
        method = with_local(method, scene.layout.head)
    return Setup(method, scene.federation.profiles, scene.clients)


def apart(name: str, models, **settings) -> Setup:
    """A method of the library among clients of different architectures, two of each."""
    training = Training(steps=1, epochs=None, batch_size=4, learning_rate=0.05)
    scene = several(models, training=training)
    method = by_architecture(lambda federation: METHODS[name](federation, **settings), scene.federation)
    return Setup(method, scene.federation.profiles, scene.clients)


def shared(models, trained: str = "all", **settings) -> Setup:
    """HeteroTune among clients of different architectures with mixtures of adapters."""
    scene = mixtures(models, trained=trained)
    return Setup(METHODS["heterotune"](scene.federation, **settings), scene.federation.profiles, scene.clients)


def aligned(models, **settings) -> Setup:
    scene = anchored(models)
    method = METHODS["co-lora"](scene.federation, **settings)
    return Setup(with_axes(method, scene.federation, 3), scene.federation.profiles, scene.clients)


def across(models, **settings) -> Setup:
    """H2Tune among clients of different architectures, two of each."""
    training = Training(steps=3, epochs=None, batch_size=4, learning_rate=0.05)
    scene = several(models, training=training)
    method = METHODS["h2tune"](scene.federation, private_steps=2, **settings)
    return Setup(method, scene.federation.profiles, scene.clients)


def coordinated(models, *, private_rank: int, parts: str = "together", **settings) -> Setup:
    """H2Tune among clients of different architectures with adapters in common coordinates."""
    scene = common(models, private_rank=private_rank, parts=parts)
    method = METHODS["h2tune"](scene.federation, ends="common", **settings)
    return Setup(with_axes(method, scene.federation, 3), scene.federation.profiles, scene.clients)


def in_common_coordinates(name: str, models) -> Setup:
    """A method beside cores and a head that all share, with coordinates that are rotated for each architecture."""
    scene = common(models, private_rank=2)
    method = beside(name, scene.federation, turned=lambda own: rotation(3, Rng(7).child(own)))
    return Setup(method, scene.federation.profiles, scene.clients)


def taught(name: str, **settings) -> Setup:
    """A method whose server owns a model, among clients of one architecture, with a server of another."""
    scene = served(name, **settings)
    return Setup(scene.method, scene.federation.profiles, scene.clients)


TABLE = {
    **{
        name: lambda name=name: real(name)
        for name in METHODS
        if name not in ("heterotune", "co-lora") and not traits_of(name).needs_server
    },
    "lada": lambda: taught("lada", candidates=3, path_tokens=3, path_bytes=12),
    "fedmkt": lambda: taught("fedmkt", candidates=3, k=4, answer_tokens=4),
    "fedcot": lambda: taught("fedcot", candidates=3, path_tokens=3, path_bytes=12, average=False),
    "fedcollm": lambda: taught("fedcollm", candidates=3, k=4, answer_tokens=4),
    "co-lora": lambda: aligned((VIT, WIDE), aggregation="rela"),
    "heterotune": lambda: shared((VIT, WIDE, LLAMA), mu=0.1),
    "heterotune-own": lambda: shared((BERT, GPT2), trained="own"),
    "fed-hello-fim": lambda: real("fed-hello", allocation="fim", **SOON),
    "fed-hello-clients-score": lambda: real("fed-hello", local_head=True, scores_from="clients", **SOON),
    "fed-hello-llama": lambda: real("fed-hello", model=LLAMA, allocation="rgd"),
    "flexlora-ranks": lambda: real("flexlora", ranks=RANKS),
    "hetlora-ranks": lambda: real("hetlora", ranks=RANKS, gamma=0.5),
    "flora-ranks": lambda: real("flora", model=GPT2, ranks=RANKS),
    "flora-llama": lambda: real("flora", model=LLAMA),
    # of two steps the second moves A too, without which nothing is left over to merge into the base
    "fedex-lora": lambda: real("fedex-lora", steps=2),
    "fedex-lora-1": lambda: real("fedex-lora", steps=2, residual_rank=1),
    "fed-hello-flora": lambda: real("fed-hello", ranks=RANKS, rule=stack_rule(), allocation="rgd"),
    "fedra-flora": lambda: real("fedra", ranks=RANKS, rule=stack_rule()),
    "fedit-apart": lambda: apart("fedit", (VIT, WIDE, LLAMA)),
    "fed-hello-apart": lambda: apart("fed-hello", (LLAMA, BERT), scores_from="clients", **SOON),
    "flora-apart": lambda: apart("flora", (BERT, WIDE)),
    "h2tune-across": lambda: across((VIT, WIDE, LLAMA, BERT)),
    "h2tune-common-ends": lambda: across((VIT, LLAMA), ends="architecture"),
    "h2tune-common": lambda: coordinated((VIT, WIDE), private_rank=2, private_steps=1, free_after=1),
    "h2tune-common-apart": lambda: coordinated((VIT, WIDE), private_rank=2, parts="apart"),
    "flora-common-rotated": lambda: in_common_coordinates("flora", (VIT, LLAMA)),
    "toy-fedavg": fedavg_setup,
    "toy-local-bias": local_bias_setup,
    "toy-vertical": vertical_setup,
    "toy-distillation": distillation_setup,
    "toy-groups": groups_setup,
}
TABLE |= {name: partial(apart_by_columns, name) for name in METHODS if traits_of(name).vertical}
TABLE |= {"proto-evfl-views": partial(apart_by_columns, "proto-evfl", self_supervised=0.5)}
TABLE |= {
    f"{name}-noised": partial(noised_by_columns, name)
    for name in METHODS
    if traits_of(name).vertical and traits_of(name).discloses
}
TABLE |= {
    "fed-hello-local-head-int8": short(lambda: real("fed-hello", local_head=True, allocation="rgd"), "int8"),
    "fed-hello-llama-bfloat16": short(TABLE["fed-hello-llama"], "bfloat16"),
    "flexlora-int8": short(TABLE["flexlora-ranks"], "int8"),
    "fedra-int8": short(TABLE["fedra"], "int8"),
    "fedit-apart-int8": short(lambda: apart("fedit", (LLAMA, BERT)), "int8"),
    "heterotune-int8": short(TABLE["heterotune"], "int8"),
    "heterotune-own-bfloat16": short(TABLE["heterotune-own"], "bfloat16"),
    "h2tune-across-int8": short(lambda: across((LLAMA, GPT2), selection="drawn"), "int8"),
    "h2tune-adam": changed(lambda: across((VIT, WIDE), deviation=0.1), kind="adam"),
    "toy-vertical-int8": short(vertical_setup, "int8"),
    "toy-distillation-bfloat16": short(distillation_setup, "bfloat16"),
    "toy-groups-int8": short(groups_setup, "int8"),
    # in the first of its steps nothing pulls a client back, so there are two
    "fed-hello-proximal-adam": changed(lambda: real("fed-hello", steps=2, **SOON), mu=0.5, kind="adam"),
    "fedra-proximal": changed(lambda: real("fedra", steps=2), mu=0.5),
    "fedsa-lora-yogi-int8": short(changed(TABLE["fedsa-lora"], kind="yogi"), "int8"),
    "toy-fedavg-momentum": changed(fedavg_setup, kind="momentum"),
}


def play_on_flower(setup: Setup, folder: Path, num_rounds: int = 3) -> tuple[Played, InProcessGrid, MethodStrategy]:
    """The same run as ``promises.play``, over a Grid; the memories are read back from the clients' disks."""
    setup = setup.bound()
    grid = InProcessGrid(app_of(setup.method, setup.profiles, setup.clients, folder), len(setup.profiles))
    cards = cards_of(setup.method, setup.profiles)
    strategy = MethodStrategy(setup.method, setup.profiles, cards, Rng(5), run=RUN)
    played = Played([setup.method.init(Rng(5).child("init"))], [], {}, [])
    for done in strategy.rounds(grid, num_rounds, state=copied(played.states[0])):
        played.states.append(done.state)
        played.traffic.append(done.traffic)
    for client in setup.clients:
        played.memories[client] = MemoryStore(memory_folder(folder, RUN, client)).newest
    return played, grid, strategy


def remembered(played: Played) -> dict:
    """The clients' memories; a client without one may be listed or not."""
    return {str(client): memory for client, memory in played.memories.items() if memory}


@pytest.mark.parametrize("name", TABLE)
def test_the_same_bits_and_memories_as_embedded(name, tmp_path):
    # a second round begins with memories from the disk; only these methods have rounds of more kinds than two
    num_rounds = 3 if name.startswith(("fed-hello", "h2tune")) else 2
    embedded = play(TABLE[name](), num_rounds=num_rounds)
    flower, grid, strategy = play_on_flower(TABLE[name](), tmp_path, num_rounds)
    assert all(same(ours, theirs) for ours, theirs in zip(embedded.states, flower.states, strict=True))
    assert not same(flower.states[0], flower.states[-1]) or name == "local-only"
    assert same(remembered(embedded), remembered(flower))
    for ours, theirs in zip(embedded.traffic, flower.traffic, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == b
            assert not a.dropped
    asked = sum(len(moved.settings) for traffic in flower.traffic for moved in traffic)
    assert len(grid.calls) == asked + len(strategy.profiles), "one message a client in each exchange, and one hello"
    assert sum(strategy.engine.messages.values()) == len(grid.calls)


def test_every_method_of_the_library_is_in_the_table():
    assert set(METHODS) <= set(TABLE)
    assert len(METHODS) >= 7


def test_memory_is_really_on_the_clients_disk(tmp_path):
    flower, _, _ = play_on_flower(real("fed-hello", local_head=True, allocation="gd"), tmp_path)
    assert all("params" in memory for memory in flower.memories.values())
    folders = sorted((tmp_path / RUN).iterdir())
    assert [folder.name for folder in folders] == [f"client-00{k}" for k in range(4)]


@pytest.mark.parametrize("name", ["flora-ranks", "fedex-lora", "fedex-lora-1"])
def test_t34_who_was_away_on_flower_catches_up_to_the_same_bits(name, tmp_path):
    """T34 over a Grid: a client that was absent is sent what it lacks, and its base lies on its disk."""
    setup = TABLE[name]().bound()

    def cohort(number):
        return [profile for profile in setup.profiles if profile.id != 3 or number == 4]

    app, cards = app_of(setup.method, setup.profiles, setup.clients, tmp_path), cards_of(setup.method, setup.profiles)
    strategy = MethodStrategy(setup.method, setup.profiles, cards, Rng(5), run=RUN, cohorts=cohort)
    state = setup.method.init(Rng(5).child("init"))
    *_, last = strategy.rounds(InProcessGrid(app, len(setup.profiles)), 5, state=copied(state))
    assert last.traffic[0].bytes_down[3] > last.traffic[0].bytes_down[0]
    bases = [MemoryStore(memory_folder(tmp_path, RUN, client)).newest["base"] for client in setup.clients]
    assert bases[3]["version"] == 4
    assert all(same(base, bases[3]) for base in bases)
    embedded = play(TABLE[name](), num_rounds=5, cohort=cohort)
    assert same(embedded.states[-1], last.state)
    assert all(same(memory["base"], bases[3]) for memory in embedded.memories.values())
