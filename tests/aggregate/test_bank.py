"""The server's bank: what unlike clients make of it, entry by entry, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.adapters.inject import adapters, inject, layout, trainable
from fedquilt.adapters.lora import LoraSettings
from fedquilt.adapters.triple import places, sites_of
from fedquilt.aggregate.bank import (
    BankUpdate,
    download_bytes,
    drawn_bank,
    from_reply,
    merged_bank,
    noise_like,
    offered,
    to_params,
    update_problem,
    upload_bytes,
)
from fedquilt.aggregate.layermap import depth_logits, depth_slots, lifted, lowered, relation, smoothing
from fedquilt.allocate.cores import drawn, leading, strongest
from fedquilt.core.entries import gathered, scattered
from fedquilt.core.errors import RoundError
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply
from fedquilt.core.wire import lengthened, shortened
from fedquilt.models.hf import load_model

laws = settings(max_examples=100, deadline=None)
SIZE = 4


def update(client, changes, entries, shares, weight=1.0, site="query"):
    return BankUpdate(client, {site: changes}, {site: entries}, shares, weight)


@st.composite
def rounds(draw, change="random"):
    """A bank, and updates of 1 to 4 clients of unlike ranks, depths, entries, sites and weights."""
    generator = Rng(draw(st.integers(0, 2**32)), ("bank",)).torch()
    slots = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    bank = {site: torch.randn(slots, SIZE, SIZE, generator=generator).to(dtype) for site in ("query", "value")}
    updates = []
    for client in range(draw(st.integers(1, 4))):
        layers, rank = draw(st.integers(1, 4)), draw(st.integers(1, SIZE))
        sites = draw(st.sampled_from([("query",), ("value",), ("query", "value")]))
        kind = draw(st.sampled_from(["leading", "drawn", "strongest"]))
        if kind == "strongest":
            entries = strongest(torch.randn(layers, SIZE, SIZE, generator=generator), rank * rank)
        else:
            lines = leading(rank, SIZE) if kind == "leading" else drawn(rank, SIZE, Rng(client))
            entries = lines.entries(SIZE)
        shares = relation(torch.randn(slots, layers, generator=generator))
        if draw(st.booleans()):
            shares = depth_slots(layers, slots)
        made = {site: torch.randn(layers, rank * rank, generator=generator) * (change == "random") for site in sites}
        weight = draw(st.integers(1, 500))
        updates.append(BankUpdate(client, made, dict.fromkeys(sites, entries), shares, weight))
    return bank, updates


def covered(bank, updates, site):
    """Which entries of which slots somebody holds, by the definition."""
    held = torch.zeros(bank[site].shape, dtype=torch.bool)
    for one in updates:
        if site in one.changes:
            entries = one.entries[site].expand(one.changes[site].shape)
            there = scattered(torch.ones(entries.shape), entries, SIZE)
            held |= lowered(there, one.relation.T) > 0
    return held


# Numbers worked by hand ------------------------------------------------------------


def test_h2_9_the_reports_example():
    """H2-9: weights 100 and 300, changes 1 and 2, so 1, 1.75, 2 and 0 where nobody is."""
    bank = {"query": torch.zeros(1, 2, 2)}
    one = torch.ones(1, 1)
    updates = [
        update(0, torch.ones(1, 2), torch.tensor([0, 1]), one, 100),
        update(1, 2 * torch.ones(1, 2), torch.tensor([1, 2]), one, 300),
    ]
    assert merged_bank(bank, updates)["query"].tolist() == [[[1.0, 1.75], [2.0, 0.0]]]
    assert merged_bank(bank, updates, step=0.5)["query"].tolist() == [[[0.5, 0.875], [1.0, 0.0]]]
    # of 400 at least a half: entry 0 has only 100 behind it
    assert merged_bank(bank, updates, damping=0.5)["query"].tolist() == [[[0.5, 1.75], [2.0, 0.0]]]


def test_a_minus_zero_that_nobody_moves_stays_one():
    bank = {"query": torch.tensor([[[-0.0, -0.0], [0.0, 1.0]]])}
    merged = merged_bank(bank, [update(0, torch.zeros(1, 2), torch.tensor([0, 3]), torch.ones(1, 1))])
    assert torch.signbit(merged["query"]).flatten().tolist() == [True, True, False, False]


def test_clients_of_unlike_depths_meet_in_the_slots():
    bank = {"query": torch.tensor([[[10.0]], [[20.0]]])}
    shallow = update(0, torch.tensor([[4.0]]), torch.tensor([0]), torch.tensor([[0.5], [0.5]]), 2)
    deep = update(1, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0]), torch.tensor([[1.0, 0.5, 0], [0, 0.5, 1]]))
    # slot 0: (2*0.5*4 + 1*1 + 0.5*2) / (1 + 1.5); slot 1: (4 + 0.5*2 + 3) / (1 + 1.5)
    merged = merged_bank(bank, [shallow, deep])["query"].flatten().tolist()
    assert merged == pytest.approx([10 + 6 / 2.5, 20 + 8 / 2.5])


# Laws ------------------------------------------------------------


@laws
@given(rounds(change="none"), st.floats(0, 0.5))
def test_h2_3_clients_that_did_nothing_leave_every_bit(case, damping):
    """H2-3. In the released code idle clients wear the bank away: 1 % is left after five rounds (B4)."""
    bank, updates = case
    merged = merged_bank(bank, updates, damping=damping)
    for site, matrices in bank.items():
        assert torch.equal(merged[site], matrices)


@laws
@given(rounds())
def test_h2_9_what_nobody_holds_stays_to_the_bit_and_inputs_stay_as_they_were(case):
    """H2-9. The released code rebuilds and averages the whole dense bank, covered or not (B2, B4)."""
    bank, updates = case
    before = {site: matrices.clone() for site, matrices in bank.items()}
    sent = [{site: changes.clone() for site, changes in one.changes.items()} for one in updates]
    merged = merged_bank(bank, updates)
    assert list(merged) == list(bank)
    for site, matrices in bank.items():
        assert torch.equal(matrices, before[site])
        assert (merged[site].dtype, merged[site].shape) == (matrices.dtype, matrices.shape)
        alone = ~covered(bank, updates, site)
        assert torch.equal(merged[site][alone], matrices[alone])
        assert (merged[site] is matrices) == all(site not in one.changes for one in updates)
    for one, old in zip(updates, sent, strict=True):
        assert all(torch.equal(one.changes[site], old[site]) for site in old)


@laws
@given(rounds(), st.randoms(use_true_random=False), st.floats(0.01, 100))
def test_h2_9_neither_the_order_of_clients_nor_the_unit_of_weights_matters(case, order, unit):
    bank, updates = case
    mixed = [replace(one, weight=one.weight * unit) for one in updates]
    order.shuffle(mixed)
    left, right = merged_bank(bank, updates, damping=0.01), merged_bank(bank, iter(mixed), damping=0.01)
    for site in bank:
        torch.testing.assert_close(
            left[site], right[site], rtol=1e-2 if bank[site].dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )


@laws
@given(rounds())
def test_one_client_moves_the_bank_by_what_it_lifts(case):
    """H2-9, against ``lifted``: an entry that one client holds moves by exactly that client's lifted change."""
    bank, updates = case
    one = updates[0]
    exact = {site: matrices.double() for site, matrices in bank.items()}
    merged = merged_bank(exact, [one])
    for site, changes in one.changes.items():
        entries = one.entries[site].expand(changes.shape)
        dense = scattered(changes.double(), entries, SIZE)
        there = scattered(torch.ones_like(changes), entries, SIZE).bool()
        torch.testing.assert_close(merged[site] - exact[site], lifted(dense, one.relation, there), rtol=1e-9, atol=1e-9)


@laws
@given(rounds(), st.integers(2, 4))
def test_equal_clients_are_as_one_of_them(case, copies):
    bank, updates = case
    one = updates[0]
    exact = {site: matrices.double() for site, matrices in bank.items()}
    many = merged_bank(exact, [replace(one, client=client) for client in range(copies)])
    single = merged_bank(exact, [one])
    for site in bank:
        torch.testing.assert_close(many[site], single[site])


@laws
@given(st.integers(0, 2**32), st.lists(st.integers(1, 900), min_size=1, max_size=4))
def test_h2_8_clients_that_are_alike_make_the_weighted_mean(seed, weights):
    """H2-8. The released code takes the unweighted mean, in the first client's own tensors (B22)."""
    generator = Rng(seed).torch()
    bank = {"query": torch.randn(3, SIZE, SIZE, generator=generator)}
    changes = [torch.randn(3, SIZE * SIZE, generator=generator) for _ in weights]
    whole = leading(SIZE, SIZE).entries(SIZE)
    merged = merged_bank(
        bank,
        [update(c, change, whole, torch.eye(3), w) for c, (change, w) in enumerate(zip(changes, weights, strict=True))],
    )
    mean = sum(w * change for w, change in zip(weights, changes, strict=True)) / sum(weights)
    torch.testing.assert_close(merged["query"], bank["query"] + mean.view(3, SIZE, SIZE), rtol=0, atol=1e-5)


@laws
@given(rounds(), st.integers(0, 2**32))
def test_h2_5_a_change_of_one_entry_shows_in_that_entry_and_in_no_other(case, seed):
    """H2-5. The released code sends what it captured before training: no change shows at all (B2)."""
    bank, updates = case
    bank = {site: matrices.double() for site, matrices in bank.items()}
    one = updates[0]
    site, changes = next(iter(one.changes.items()))
    layer, place = (
        int(torch.randint(n, (1,), generator=Rng(seed, (name,)).torch()))
        for name, n in zip("lp", changes.shape, strict=True)
    )
    other = changes.clone()
    other[layer, place] += 1
    moved = (
        merged_bank(bank, [replace(one, changes={**one.changes, site: other})])[site] - merged_bank(bank, [one])[site]
    )
    entry = int(one.entries[site].expand(changes.shape)[layer, place])
    rows = moved.flatten(1)
    assert not rows[:, torch.arange(SIZE * SIZE) != entry].any()
    assert torch.equal(rows[:, entry] > 0, one.relation[:, layer] > 0)


@laws
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_h2_21_a_client_alone_gets_its_change_back_smoothed_over_layers(layers, slots, seed):
    """H2-21. What comes back from the released code is P P^T of random noise (B3, B4)."""
    shares = relation(depth_logits(layers, slots))
    change = torch.randn(layers, SIZE * SIZE, generator=Rng(seed).torch())
    whole = leading(SIZE, SIZE).entries(SIZE)
    merged = merged_bank({"query": torch.zeros(slots, SIZE, SIZE)}, [update(0, change, whole, shares)])
    back = lowered(merged["query"].flatten(1), shares)
    torch.testing.assert_close(back, smoothing(shares) @ change, rtol=0, atol=1e-5)
    same = torch.ones(layers, 1) * change[:1]
    merged = merged_bank({"query": torch.zeros(slots, SIZE, SIZE)}, [update(0, same, whole, shares)])
    torch.testing.assert_close(lowered(merged["query"].flatten(1), shares), same, rtol=0, atol=1e-5)


# The bank itself ------------------------------------------------------------


def test_h2_18_the_server_draws_the_bank_once_and_the_same_again():
    """H2-18. In the released code every client draws a bank of its own, without a seed (B5)."""
    first, again = (drawn_bank(("query", "value"), 3, 8, Rng(4), 0.1) for _ in range(2))
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert not torch.equal(first["query"], first["value"])
    assert torch.equal(first["value"], drawn_bank(("value",), 3, 8, Rng(4), 0.1)["value"])
    assert float(drawn_bank(("q",), 40, 16, Rng(0), 0.1)["q"].std()) == pytest.approx(0.1, rel=0.03)
    zeros = drawn_bank(("query",), 3, 8, Rng(4))["query"]
    assert zeros.shape == (3, 8, 8)
    assert not zeros.any()


def test_the_random_control_is_as_large_as_the_bank_and_knows_nothing_of_it():
    bank = drawn_bank(("query",), 5, 32, Rng(0), 0.3)
    bank["query"][2] = 0
    noise = noise_like(bank, Rng(1))
    norms = [matrices["query"].flatten(1).norm(dim=1) for matrices in (bank, noise)]
    torch.testing.assert_close(*norms)
    assert not noise["query"][2].any()
    assert torch.equal(noise["query"], noise_like(bank, Rng(1))["query"])
    cosine = (bank["query"] * noise["query"]).sum() / bank["query"].square().sum()
    assert abs(float(cosine)) < 0.05


def test_h2_4_what_is_offered_lowers_to_what_the_client_needs_of_the_whole_bank():
    """H2-4. In the released code the bank is loaded under a name that no parameter bears, and dropped (B1)."""
    bank = drawn_bank(("query", "value"), 4, 8, Rng(0), 1.0)
    entries = {"query": leading(3, 8).entries(8), "value": torch.tensor([[0, 5], [3, 60]])}
    part = offered(bank, entries)
    assert part.keys() == entries.keys()
    assert part["query"].shape == (4, 9)
    assert part["value"] is bank["value"]
    shares = relation(depth_logits(2, 4))
    torch.testing.assert_close(
        lowered(part["query"], shares), gathered(lowered(bank["query"], shares), entries["query"]), rtol=0, atol=1e-6
    )


# The wire ------------------------------------------------------------


@laws
@given(rounds(), st.booleans())
def test_h2_15_an_update_travels_as_changes_entries_and_relation_and_comes_back_the_same(case, with_entries):
    """H2-15. The released code pickles whatever the dict holds (B21); here a tensor that does not belong is refused."""
    bank, updates = case
    for one in updates:
        params = to_params(one, with_entries=with_entries)
        assert all(name == "relation" or name.startswith(("change.", "entries.")) for name in params)
        known = {} if with_entries else one.entries
        back = from_reply(Reply(one.client, params, one.weight), known)
        assert update_problem(bank, back) is None
        left, right = merged_bank(bank, [one]), merged_bank(bank, [back])
        assert all(torch.equal(left[site], right[site]) for site in bank)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_relation_that_travelled_in_few_bits_is_shares_again(dtype):
    shares = torch.cat([torch.eye(28)[:, :2], torch.full((28, 2), 1 / 28)], dim=1)
    rounded = lengthened(*shortened(shares, dtype)).float()
    assert float((rounded.sum(0) - 1).abs().max()) > (0.1 if dtype == "int8" else 1e-4)
    params = {"change.query": torch.ones(4, 1), "relation": rounded}
    back = from_reply(Reply(0, params, 1), {"query": torch.tensor([0])})
    torch.testing.assert_close(back.relation, shares, rtol=0, atol=1e-3)
    assert update_problem({"query": torch.zeros(28, 2, 2)}, back) is None
    far = from_reply(Reply(0, {**params, "relation": 2 * shares}, 1), {"query": torch.tensor([0])})
    assert "columns must sum to 1" in update_problem({"query": torch.zeros(28, 2, 2)}, far)


def test_h2_15_ends_of_adapters_and_heads_do_not_belong():
    """H2-15. The private factors never travel."""
    good = to_params(update(3, torch.zeros(1, 1), torch.tensor([0]), torch.ones(1, 1)))
    for name in ("layers.0.q.lora_A", "head.weight", "scores.query", "change."):
        with pytest.raises(
            RoundError, match=f"client 3 sent tensor '{name}', which is no part of an update of the bank"
        ):
            from_reply(Reply(3, {**good, name: torch.ones(1)}, 1), {})
    with pytest.raises(RoundError, match="client 3 sent no tensor 'relation'"):
        from_reply(Reply(3, {"change.query": torch.ones(1, 1)}, 1), {})


@laws
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 8), st.booleans(), st.booleans())
def test_h2_16_bytes_are_the_formula(layers, slots, sites, rank, with_entries, unlike):
    """H2-16. The released code sends every client the dense bank in 4 bytes a number: 12.85 MB each way."""
    for dtype, value_bytes in ((torch.float32, 4), (torch.bfloat16, 2)):
        names = [f"site{number}" for number in range(sites)]
        entries = leading(rank, 8).entries(8)
        held = entries.repeat(layers, 1) if unlike else entries
        changes = {name: torch.zeros(layers, rank * rank, dtype=dtype) for name in names}
        shares = relation(depth_logits(layers, slots)).to(dtype)
        params = to_params(BankUpdate(0, changes, dict.fromkeys(names, held), shares, 1), with_entries=with_entries)
        index_bytes = 2 if with_entries else 0
        expected = upload_bytes(
            layers, slots, sites, rank**2, value_bytes=value_bytes, index_bytes=index_bytes, unlike_layers=unlike
        )
        assert num_bytes(params) == expected
        bank = {name: matrices.to(dtype) for name, matrices in drawn_bank(names, slots, 8, Rng(0)).items()}
        count = 64 if unlike else rank**2
        assert num_bytes(offered(bank, dict.fromkeys(names, held))) == download_bytes(
            slots, sites, count, value_bytes=value_bytes
        )


def test_entries_of_a_large_bank_take_four_bytes_and_come_back():
    entries = torch.tensor([5, 2**15])
    params = to_params(update(0, torch.zeros(1, 2), entries, torch.ones(1, 1)), with_entries=True)
    assert params["entries.query"].dtype == torch.int32
    assert torch.equal(params["entries.query"].long(), entries)


def test_h2_16_a_one_billion_model_sends_half_a_percent_of_its_lora():
    """H2-16, for LLaMA 3.2 1B with query and value at rank 16; the released code sends 4 to 33 % of a LoRA."""
    found = load_model("shape:llama-3.2-1b", "causal-lm", num_classes=None, rng=Rng(0), meta=True)
    inject(found.model, found.blocks, LoraSettings(rank=16, alpha=16.0), ("q_proj", "v_proj"))
    where = layout(found.model, found.blocks, found.architecture)
    lora = num_bytes(trainable(found.model, where))
    sites = sites_of(places(adapters(found.model), found.blocks))
    assert (lora, where.num_layers, sites) == (6_815_744, 16, ("query", "value"))
    up, down = upload_bytes(16, 16, 2, 256), download_bytes(16, 2, 256)
    assert (up, down) == (33_792, 32_768)
    assert up / lora < 0.005
    assert down / lora < 0.005
    assert [upload_bytes(16, 16, 2, rank**2) for rank in (4, 8, 16)] == [3072, 9216, 33_792]


# What is refused ------------------------------------------------------------


GOOD = update(7, torch.zeros(2, 4), torch.tensor([0, 1, 4, 5]), torch.eye(2), 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": 0.0}, "weight is 0.0; it must be a number above 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"changes": {}}, "of no site"),
        ({"changes": {"gate": torch.zeros(2, 4)}}, "the bank has no site 'gate'"),
        ({"changes": {"query": torch.zeros(2, 3)}}, r"changes of 'query' are \(2, 3\); its entries are \(4,\)"),
        ({"changes": {"query": torch.zeros(3, 4)}}, r"relation has shape \(2, 2\); 2 slots and 3 layers"),
        ({"changes": {"query": torch.full((2, 4), torch.inf)}}, "finite floating-point"),
        ({"changes": {"query": torch.zeros(2, 4, dtype=torch.int64)}}, "finite floating-point"),
        ({"entries": {"query": torch.tensor([0, 1, 1, 5])}}, "entries of 'query' must be sorted, none twice"),
        ({"entries": {"query": torch.tensor([0, 1, 4, 16])}}, "below 16"),
        ({"entries": {"query": torch.tensor([[0, 1, 4, 5]])}}, r"its entries are \(1, 4\)"),
        ({"relation": -torch.eye(2)}, "at least 0"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_its_client_and_reason(change, words):
    bank = drawn_bank(("query",), 2, SIZE, Rng(0))
    assert update_problem(bank, GOOD) is None
    with pytest.raises(RoundError, match=f"client 7: .*{words}"):
        merged_bank(bank, [GOOD, replace(GOOD, **change)])


def test_no_updates_are_an_error():
    with pytest.raises(RoundError, match="no updates to merge into the bank; at least one client must answer"):
        merged_bank(drawn_bank(("query",), 2, SIZE, Rng(0)), [])
