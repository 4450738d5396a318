"""H2Tune among unlike models: what is delivered, what travels, what stays, and what each switch does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from promises import Setup, copied, play, same
from small_federation import BERT, GPT2, LLAMA, VIT, WIDE, several, small

from fedquilt.adapters.sites import places_in, sites_of
from fedquilt.aggregate.settings import AlignSettings
from fedquilt.bank.alignment import aligned_bank
from fedquilt.bank.merge import BankUpdate, exchange_bytes, merged_bank, offered, slots_in
from fedquilt.bank.relation import lowered, relation
from fedquilt.bank.selection import leading
from fedquilt.client import Training
from fedquilt.config.arguments import arguments
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.loop import perform
from fedquilt.core.method import overlay
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Layout, Order, Profile, Reply, Turn
from fedquilt.methods.h2tune import h2tune
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

MODELS = (VIT, WIDE, LLAMA, BERT)


def scene(models=MODELS, ranks=None, layers=None, **settings):
    """A setup in which the clients of each model have the rank that ``ranks`` says.

    Where all four models are there, two steps suffice: one for what is shared, one for what is not.
    """
    training = Training(steps=2 if models is MODELS else 5, epochs=None, batch_size=4, learning_rate=0.05)
    made = several(models, training=training, rank=2 if ranks is None else max(ranks))
    if ranks is None:
        return Setup(h2tune(made.federation, **settings), made.federation.profiles, made.clients).bound()
    clients = {}
    for id, client in made.clients.items():
        budget = Budget(client.profile.budget.layers if layers is None else layers, ranks[id // 2])
        own = {
            name: t.narrow(0 if name.endswith("lora_A") else 1, 0, budget.rank) if "lora_" in name else t
            for name, t in client.initial.items()
        }
        clients[id] = replace(client, profile=replace(client.profile, budget=budget), initial=own)
    federation = replace(made.federation, profiles=tuple(client.profile for client in clients.values()))
    return Setup(h2tune(federation, **settings), federation.profiles, clients).bound()


def layouts(setup):
    return {id: client.bench.layout for id, client in setup.clients.items()}


def orders_of(setup, state, number=1):
    (fit,) = setup.method.exchanges
    return fit.ask(state, Turn(number, setup.profiles, Rng(1)))


# What is delivered ------------------------------------------------------------


def test_h2_4_after_a_round_every_client_works_with_its_mean_of_the_new_bank():
    """H2-4. In the released code the result is loaded under a name that no parameter bears, and dropped (B1)."""
    setup = scene(ranks=(2, 4, 3, 4))
    played = play(setup)
    bank = played.states[-1]["params"]
    assert all(bool(matrices.any()) for matrices in bank.values())
    for profile in setup.profiles:
        client, memory = setup.clients[profile.id], played.memories[profile.id]
        params = client.params(setup.method.view(played.states[-1], profile), memory)
        shares, rank = relation(memory["params"]["relation"]), profile.budget.rank
        for module, place in places_in(client.bench.layout).items():
            whole = lowered(bank[place.site], shares)[place.layer]
            torch.testing.assert_close(params[f"{module}.core"], whole[:rank, :rank], rtol=0, atol=1e-6)


def test_a_bank_that_others_filled_changes_what_a_client_answers():
    """The released code's clients answer as if they were alone (B1, B2, B3)."""
    setup = scene()
    played = play(setup)
    client, memory = setup.clients[0], played.memories[0]
    view = setup.method.view(played.states[-1], client.profile)
    without = replace(view, params={name: torch.zeros_like(tensor) for name, tensor in view.params.items()})
    assert client.evaluate(view, memory) != client.evaluate(without, memory)


def test_h2_2_with_an_empty_bank_and_no_change_it_is_plain_lora_to_the_bit():
    """H2-2. The released code merges B T A without the identity path (B16)."""
    setup = scene((VIT,))
    client = setup.clients[0]
    state = setup.method.init(Rng(5).child("init"))
    view = setup.method.view(state, client.profile)
    assert client.evaluate(view, {}) == replace(client, model=overlay).evaluate(Order({}), {})


# What travels and what stays ------------------------------------------------------------


def test_h2_15_slots_and_coverage_travel_and_nothing_else():
    """H2-15. The released code pickles what its dict holds (B21). A, B, heads and relations stay here."""
    setup = scene(ranks=(2, 4, 3, 4))
    seen = []
    (fit,) = setup.method.exchanges

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        seen.append((order, reply))
        return reply, memory

    watched = setup._replace(method=setup.method._replace(exchanges=(fit._replace(work=work),)))
    memories = play(watched).memories
    assert len(seen) == 3 * len(setup.clients)
    for order, reply in seen:
        assert reply.params.keys() == order.params.keys() == fit.expects(order).keys()
        assert reply.params.keys() == {"coverage", "bank.query", "bank.value"}
        assert all(reply.params[name].shape == tensor.shape for name, tensor in order.params.items())
        assert set(order.settings) == {"layers", "joint", "relation", "width", "architecture"}
    for id, memory in memories.items():
        where = setup.clients[id].bench.layout
        layers = range(where.num_layers - min(where.num_layers, setup.clients[id].profile.budget.layers), 9)
        assert memory.keys() == {"params"}
        assert memory["params"].keys() == {*where.names(layers), *where.head, "relation"}


def test_h2_5_a_change_of_what_was_learned_shows_in_what_is_sent_and_there_alone():
    """H2-5. The released code sends what it had before training (B2)."""
    setup = scene((VIT,), ranks=(2,))
    (fit,) = setup.method.exchanges
    state = setup.method.init(Rng(5).child("init"))
    order = orders_of(setup, state)[1]
    client = setup.clients[1]

    class Nudged:
        """The client, one entry of whose change is moved after training."""

        def __init__(self, by):
            self.by = by

        def __getattr__(self, name):
            return getattr(client, name)

        def alternate(self, *given, **more):
            fitted = client.alternate(*given, **more)
            fitted.params["change.query"][3, 2] += self.by
            return fitted

    plain, nudged = (fit.work(Nudged(by), order, {})[0].params for by in (0.0, 1.0))
    moved = nudged["bank.query"] - plain["bank.query"]
    assert not moved[:, [0, 1, 3]].any()
    assert float(moved[3, 2]) > 0.5
    assert torch.equal(plain["bank.value"], nudged["bank.value"])
    assert torch.equal(plain["coverage"], nudged["coverage"])


def test_h2_16_what_travels_is_the_formula_and_grows_with_the_rank():
    """H2-16. The released code sends 12.85 MB each way for every client, whatever its rank."""
    setup = scene(ranks=(1, 4, 3, 2))
    moved = play(setup, num_rounds=1).traffic[0][0]
    for profile in setup.profiles:
        sites = len(sites_of(places_in(setup.clients[profile.id].bench.layout)))
        expected = exchange_bytes(4, sites, profile.budget.rank**2)
        assert moved.bytes_down[profile.id] == moved.bytes_up[profile.id] == expected
    assert moved.bytes_up[0] < moved.bytes_up[6] < moved.bytes_up[4] < moved.bytes_up[2]


def test_a_budget_of_bytes_makes_the_core_smaller_and_not_the_adapter():
    most = exchange_bytes(4, 2, 9)
    setup = scene(ranks=(2, 4, 3, 4), max_bytes=most)
    played = play(setup)
    moved = played.traffic[-1][0]
    assert {id: round((size / 16 - 1) / 2) for id, size in moved.bytes_up.items() if id % 2 == 0} == {
        0: 4,
        2: 9,
        4: 9,
        6: 9,
    }
    assert max(moved.bytes_up.values()) <= most
    state = played.states[-1]
    assert state["params"]["query"].shape == (4, 3, 3)
    core = setup.clients[2].params(setup.method.view(state, setup.profiles[2]), played.memories[2])
    name = next(name for name in core if name.endswith(".core"))
    assert core[name].shape == (4, 4)
    assert not core[name][3:].any()
    assert not core[name][:, 3:].any()
    with pytest.raises(ConfigError, match="47 bytes are too few for 8 matrices: rank 1 takes 48"):
        scene(max_bytes=47)


def test_h2_6_the_part_that_a_client_has_is_the_same_all_through_a_round_and_at_full_rank_the_whole():
    """H2-6. The released code chooses anew at every forward pass (B7, B8)."""
    for selection in ("leading", "drawn", "strongest"):
        setup = scene(ranks=(2, 4, 3, 4), selection=selection, deviation=0.1)
        state = play(setup, num_rounds=2).states[-1]
        first, again = orders_of(setup, state), orders_of(setup, copied(state))
        assert same([first[id].params for id in first], [again[id].params for id in first])
        whole = slots_in(first[2].params)  # rank 4 of 4
        for site, matrices in state["params"].items():
            assert torch.equal(whole[site], matrices.flatten(1))


def test_the_strongest_entries_are_those_that_grew_and_are_kept_between_choices():
    setup = scene((VIT, WIDE), ranks=(2, 4), selection="strongest", deviation=0.05, reselect=2)
    played = play(setup, num_rounds=3)
    scores = [state["selection"]["query"] for state in played.states]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])
    assert torch.equal(scores[2], scores[3])
    state = played.states[2]
    sent = slots_in(setup.method.view(state, setup.profiles[0]).params)["query"]
    strength = state["params"]["query"].square().sum(0).flatten()
    chosen = sorted(strength.topk(4).indices.tolist())
    assert torch.equal(sent, state["params"]["query"].flatten(1)[:, chosen])


def test_drawn_parts_are_each_clients_own_and_stay():
    setup = scene(ranks=(2, 4, 3, 4), selection="drawn", deviation=0.1)
    state = setup.method.init(Rng(5).child("init"))
    parts = {id: slots_in(order.params)["query"] for id, order in orders_of(setup, state).items()}
    assert not torch.equal(parts[0], parts[1])
    assert torch.equal(parts[0], slots_in(orders_of(setup, state, number=9)[0].params)["query"])
    assert not torch.equal(parts[0], offered(state["params"], {"query": leading(2, 4).entries(4)})["query"])


# The two phases ------------------------------------------------------------


def test_h2_11_all_at_once_in_the_first_rounds_then_in_turns():
    """H2-11. In the released code shared and private gradients share one step (B11)."""
    setup = scene(
        (VIT,), joint_rounds=2, shared_steps=2, private_steps=3, agreement=0.7, temperature=2.0, shared_rate=3
    )
    client, asked = setup.clients[0], []

    class Watching:
        def __getattr__(self, name):
            return getattr(client, name)

        def alternate(self, order, memory, phases, **more):
            asked.append(phases)
            return client.alternate(order, memory, phases, **more)

    play(setup._replace(clients={**setup.clients, 0: Watching()}), num_rounds=3)
    shared = {"change.query", "change.value", "relation"}
    private = {*client.bench.layout.names([3]), *client.bench.layout.head}  # a budget of one block is the last one
    assert [len(phases) for phases in asked] == [1, 1, 2]
    assert asked[0][0].names == shared | private
    first, second = asked[2]
    assert (first.names, first.steps, first.rate, first.agreement) == (shared, 2, 3, 0)
    assert (second.names, second.steps, second.rate, second.agreement) == (private, 3, 1, 0.7)
    assert second.temperature == 2.0
    assert len(first.penalties) == len(asked[0][0].penalties) == 1
    assert not second.penalties


def test_the_anchor_holds_the_cores_near_what_was_sent():
    """In the released code the anchor is blind to a shift that is the same for all entries."""

    def travelled(anchor):
        setup = scene((VIT, WIDE), anchor=anchor, joint_rounds=2)
        after = play(setup, num_rounds=2).states[-1]["params"]
        return float(sum(matrices.square().sum() for matrices in after.values()))

    assert 0 < travelled(1000.0) < 0.5 * travelled(0.0)


def test_a_fixed_relation_is_neither_trained_nor_kept():
    setup = scene((VIT, WIDE), alignment="top")
    played = play(setup)
    assert all("relation" not in memory["params"] for memory in played.memories.values())
    # the shallow model, of three layers, is at the top: nothing of it is in the first slot
    alone = scene((WIDE,), alignment="top", slots=4)
    bank = play(alone).states[-1]["params"]["query"]
    assert not bank[0].any()
    assert all(bool(bank[slot].any()) for slot in (2, 3))


# The same again ------------------------------------------------------------


def test_h2_18_the_same_seed_gives_the_same_bits():
    """H2-18. In the released code every client draws its own bank, unseeded (B5)."""
    ends = [play(scene(selection="drawn", deviation=0.1)).end for _ in range(2)]
    assert same(*ends)


def test_h2_19_a_client_that_is_killed_after_its_training_does_it_again_to_the_bit(tmp_path):
    """H2-19. In the released code a restart loses the bank and the relation (B1)."""
    setup = scene()
    (fit,) = setup.method.exchanges
    played = play(setup, num_rounds=2)
    order = replace(orders_of(setup, played.states[-1], 2)[4], round=2, rng=Rng(3))
    first, _ = perform(fit, setup.clients[4], 4, order, played.memories[4])
    # the process dies before its reply is out; its memory comes back from the disk as it was after round 1
    memory = tree_from_bytes(tree_to_bytes(played.memories[4]))
    again, _ = perform(fit, scene().clients[4], 4, order, memory)
    assert isinstance(first, Reply)
    assert same(first.params, again.params)


# The controls ------------------------------------------------------------


def test_noise_is_as_large_as_the_bank_that_the_clients_made_and_tells_nothing_of_it():
    setup = scene((VIT, WIDE), ranks=(4, 4), bank="noise")
    played = play(setup)
    state = played.states[-1]
    sent = slots_in(setup.method.view(state, setup.profiles[0]).params)
    for site, matrices in state["params"].items():
        assert bool(matrices.any())
        torch.testing.assert_close(sent[site].norm(dim=1), matrices.flatten(1).norm(dim=1))
        cosine = torch.cosine_similarity(sent[site], matrices.flatten(1), dim=1)
        assert float(cosine.abs().max()) < 0.9
    again = slots_in(setup.method.view(played.states[1], setup.profiles[0]).params)
    same_way = torch.cosine_similarity(sent["query"].flatten(), again["query"].flatten(), dim=0)
    assert float(same_way) > 0.6  # the same noise in every round, so that clients could get used to it


def test_gpt2s_joint_projection_is_a_site_that_it_shares_with_others_queries():
    setup = scene((GPT2, LLAMA))
    sent = {id: set(slots_in(order.params)) for id, order in orders_of(setup, play(setup).states[-1]).items()}
    assert sent == {0: {"query"}, 1: {"query"}, 2: {"query", "value"}, 3: {"query", "value"}}


def test_ends_that_an_architecture_shares_are_its_weighted_mean_and_cross_to_no_other():
    setup = scene((VIT, LLAMA), ends="architecture")
    (fit,) = setup.method.exchanges
    sent = []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        sent.append(reply)
        return reply, memory

    watched = setup._replace(method=setup.method._replace(exchanges=(fit._replace(work=work),)))
    played = play(watched, num_rounds=1)
    before, after = (state["ends"] for state in played.states)
    for architecture, (one, two) in (("vit-4x8", sent[:2]), ("llama-3x8", sent[2:])):
        where = setup.clients[one.client].bench.layout
        for name in where.depth:
            both = [reply for reply in (one, two) if name in reply.params]
            key, total = f"{architecture}/{name}", sum(reply.weight for reply in both)
            if not both:
                assert torch.equal(after[key], before[key])
                continue
            mean = sum(reply.weight / total * reply.params[name].double() for reply in both)
            torch.testing.assert_close(after[key].double(), mean, rtol=0, atol=1e-6)
    assert all(memory["params"].keys() == {"relation"} for memory in played.memories.values())
    assert played.traffic[0][0].bytes_up[0] < played.traffic[0][0].bytes_down[0]  # one block of four is trained
    view = setup.method.view(played.states[-1], setup.profiles[0])
    used = setup.clients[0].params(view, played.memories[0])
    assert all(torch.equal(used[name], after[f"vit-4x8/{name}"]) for name in setup.clients[0].bench.layout.depth)


def test_ends_of_unlike_rank_cannot_be_averaged():
    with pytest.raises(ConfigError, match=r"method.ends = 'architecture': client 0 has rank 2 and its architecture 4"):
        scene((VIT, WIDE), ranks=(2, 4), ends="architecture")


# Alignment ------------------------------------------------------------


@pytest.mark.parametrize("align", ["projection", "reference", "soft"])
def test_aligned_architectures_move_the_bank_by_what_they_agree_on(align):
    """The bank after a round is that of ``aligned_bank`` over what the clients sent; the record is in the state."""
    setup = scene((VIT, WIDE, LLAMA), ranks=(2, 4, 3), align=align, deviation=0.1, server_rate=0.5)
    (fit,) = setup.method.exchanges
    sent = []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        sent.append((client, reply))
        return reply, memory

    watched = setup._replace(method=setup.method._replace(exchanges=(fit._replace(work=work),)))
    before, after = play(watched, num_rounds=1, seed=6).states
    updates = [
        (
            client.profile.architecture,
            BankUpdate(
                client.id,
                slots_in(reply.params),
                dict.fromkeys(slots_in(reply.params), leading(client.profile.budget.rank, 4).entries(4)),
                reply.params["coverage"],
                reply.weight,
            ),
        )
        for client, reply in sent
    ]
    draws = Rng(before["align"]["seed"]).child("merge", 0)
    expected, told = aligned_bank(before["params"], updates, AlignSettings(align), draws, step=0.5, damping=0.01)
    plain = merged_bank(before["params"], [one for _, one in updates], step=0.5, damping=0.01)
    assert same(after["params"], expected)
    assert not same(after["params"], plain)
    assert (before["conflicts"], after["conflicts"]) == (0, told.conflicts)
    assert told.conflicts > 0
    assert (before["cosines"], after["cosines"]) == ([0.0] * 9, told.cosines.flatten().tolist())
    assert (before["align"]["merges"], after["align"]["merges"]) == (0, 1)


def test_without_alignment_nothing_of_it_is_in_the_state_and_the_seed_moves_nothing_else():
    plain, ours = (scene((VIT,), deviation=0.1, selection="drawn", align=align) for align in ("none", "projection"))
    left, right = (setup.method.init(Rng(5).child("init")) for setup in (plain, ours))
    assert right.keys() - left.keys() == {"conflicts", "cosines", "align"}
    assert same(left, {name: right[name] for name in left})
    # with one architecture nobody is in anybody's way
    assert same(play(plain).states[-1]["params"], play(ours).states[-1]["params"])


def test_a_server_that_aligns_goes_on_from_its_file_in_the_same_bits():
    setup = scene(align="projection", deviation=0.1)
    (fit,) = setup.method.exchanges
    played = play(setup, num_rounds=2)
    state = tree_from_bytes(tree_to_bytes(played.states[-1]))
    orders = orders_of(setup, state, 2)
    replies = [perform(fit, setup.clients[id], id, order, played.memories[id])[0] for id, order in orders.items()]
    whole, resumed = fit.merge(played.states[-1], iter(replies)), fit.merge(state, iter(replies))
    assert same(whole, resumed)
    assert whole["align"]["merges"] == 3


def test_noise_in_place_of_the_bank_is_aligned_too():
    setup = scene((VIT, WIDE), ranks=(4, 4), bank="noise", align="projection", deviation=0.1)
    state = play(setup).states[-1]
    assert len(state["cosines"]) == 4
    assert all(bool(torch.isfinite(matrices).all()) for matrices in state["params"].values())


# What is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shared_steps": 0}, "method.shared_steps = 0: must be at least 1"),
        ({"private_steps": -1}, "method.private_steps = -1: must be at least 1"),
        ({"slots": 0}, "method.slots = 0: must be at least 1"),
        ({"width": 0.0}, "method.width = 0.0: must be at least 1e-06"),
        ({"temperature": -1.0}, "method.temperature = -1.0: must be at least 1e-06"),
        ({"agreement": -0.5}, "method.agreement = -0.5: must be at least 0"),
        ({"joint_rounds": -1}, "method.joint_rounds = -1: must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        arguments(h2tune, settings, prefix="method")


def test_adapters_of_unlike_ranks_in_one_model_and_modules_without_a_place_are_refused():
    shapes = {"m.layers.0.q_proj.lora_A": (2, 4), "m.layers.0.v_proj.lora_A": (3, 4)}
    shapes |= {name.replace("_A", "_B"): (4, shape[0]) for name, shape in shapes.items()}

    def federation(of):
        where = Layout("m", 1, dict.fromkeys(of, 0), of)
        return replace(small().federation, profiles=(Profile(0, 1, "m", Budget(1), ""),), layouts={"m": where})

    with pytest.raises(ConfigError, match=r"adapter.rank_pattern: m has adapters of the ranks 2, 3"):
        h2tune(federation(shapes))
    with pytest.raises(ModelError, match=r"'m.layers.0.odd' has no place among the sites"):
        h2tune(federation({name.replace("q_proj", "odd"): shape for name, shape in shapes.items()}))


def test_more_layers_than_slots_cannot_be_aligned_at_the_top():
    with pytest.raises(ConfigError, match=r"method.alignment = 'top': vit-4x8 has 4 layers and the bank 3 slots"):
        h2tune(small().federation, alignment="top", slots=3)


def test_bytes_that_the_method_keeps_are_small():
    setup = scene((VIT, WIDE), ranks=(4, 4))
    state = play(setup, num_rounds=1).states[-1]
    assert num_bytes(state["params"]) == 2 * 4 * 16 * 4
