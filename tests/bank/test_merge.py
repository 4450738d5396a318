"""The server's bank: what unlike clients make of it, entry by entry, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.adapters.lora.inject import adapters, inject, layout, trainable
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.sites import places, sites_of
from fedquilt.bank.entries import gathered
from fedquilt.bank.merge import (
    COVERAGE,
    BankUpdate,
    as_large,
    at_most,
    drawn_bank,
    exchange_bytes,
    merged_bank,
    offered,
    slots_in,
    to_params,
    update_problem,
)
from fedquilt.bank.relation import depth_logits, depth_slots, lifted, lowered, relation, smoothing
from fedquilt.bank.selection import drawn, leading, strongest
from fedquilt.core.errors import RoundError
from fedquilt.core.params import num_bytes
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

laws = settings(max_examples=100, deadline=None)
SIZE = 4


def update(client, slots, entries, coverage, weight=1.0, site="query"):
    return BankUpdate(client, {site: slots}, {site: entries}, coverage, weight)


@st.composite
def rounds(draw, change="random"):
    """A bank, and updates of 1 to 4 clients of unlike ranks, entries, sites, coverages and weights."""
    generator = Rng(draw(st.integers(0, 2**32)), ("bank",)).torch()
    slots = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    bank = {site: torch.randn(slots, SIZE, SIZE, generator=generator).to(dtype) for site in ("query", "value")}
    updates = []
    for client in range(draw(st.integers(1, 4))):
        rank = draw(st.integers(1, SIZE))
        sites = draw(st.sampled_from([("query",), ("value",), ("query", "value")]))
        kind = draw(st.sampled_from(["leading", "drawn", "strongest"]))
        if kind == "strongest":
            entries = strongest(torch.randn(SIZE, SIZE, generator=generator), rank * rank)
        else:
            entries = (leading(rank, SIZE) if kind == "leading" else drawn(rank, SIZE, Rng(client))).entries(SIZE)
        coverage = torch.rand(slots, generator=generator) * 3
        if draw(st.booleans()):
            coverage = depth_slots(2, slots).sum(1)  # of some slots nothing
        held = dict.fromkeys(sites, entries)
        made = offered(bank, held)
        if change == "random":
            made = {site: sent + torch.randn(sent.shape, generator=generator).to(dtype) for site, sent in made.items()}
        updates.append(BankUpdate(client, made, held, coverage, draw(st.integers(1, 500))))
    return bank, updates


def covered(bank, updates, site):
    """Which entries of which slots somebody holds, by the definition."""
    held = torch.zeros(len(bank[site]), SIZE * SIZE, dtype=torch.bool)
    for one in updates:
        if site in one.slots:
            held[(one.coverage > 0)[:, None] & torch.isin(torch.arange(SIZE * SIZE), one.entries[site])] = True
    return held.view(-1, SIZE, SIZE)


def exact(bank):
    return {site: matrices.double() for site, matrices in bank.items()}


# Numbers worked by hand ------------------------------------------------------------


def test_h2_9_the_reports_example():
    """H2-9: weights 100 and 300, changes 1 and 2, so 1, 1.75, 2 and 0 where nobody is."""
    bank = {"query": torch.zeros(1, 2, 2)}
    one = torch.ones(1)
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
    merged = merged_bank(bank, [update(0, torch.tensor([[0.0, 1.0]]), torch.tensor([0, 3]), torch.ones(1))])
    assert torch.signbit(merged["query"]).flatten().tolist() == [True, True, False, False]


def test_clients_of_unlike_depths_meet_in_the_slots():
    bank = {"query": torch.tensor([[[10.0]], [[20.0]]])}
    none = torch.tensor([0])
    shallow = update(0, torch.tensor([[14.0], [24.0]]), none, torch.tensor([0.5, 0.5]), 2)
    deep = update(1, torch.tensor([[12.0], [21.0]]), none, torch.tensor([1.5, 1.5]))
    # each slot: (2 * 0.5 * 4 + 1.5 * change) / (1 + 1.5)
    merged = merged_bank(bank, [shallow, deep])["query"].flatten().tolist()
    assert merged == pytest.approx([10 + (4 + 3) / 2.5, 20 + (4 + 1.5) / 2.5])


def test_a_coverage_below_zero_counts_as_none():
    bank = {"query": torch.zeros(1, 1, 1)}
    odd = update(0, torch.ones(1, 1), torch.tensor([0]), torch.tensor([-3.0]))
    assert merged_bank(bank, [odd])["query"].item() == 0
    good = update(1, 2 * torch.ones(1, 1), torch.tensor([0]), torch.ones(1))
    assert merged_bank(bank, [odd, good])["query"].item() == 2


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
    sent = [{site: slots.clone() for site, slots in one.slots.items()} for one in updates]
    merged = merged_bank(bank, updates)
    assert list(merged) == list(bank)
    for site, matrices in bank.items():
        assert torch.equal(matrices, before[site])
        assert (merged[site].dtype, merged[site].shape) == (matrices.dtype, matrices.shape)
        alone = ~covered(bank, updates, site)
        assert torch.equal(merged[site][alone], matrices[alone])
        assert (merged[site] is matrices) == all(site not in one.slots for one in updates)
    for one, old in zip(updates, sent, strict=True):
        assert all(torch.equal(one.slots[site], old[site]) for site in old)


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
def test_h2_9_one_client_alone_has_its_way_where_its_layers_are(case):
    """H2-9: an entry that one client holds moves by exactly what that client lifted. The released code sends what was
    there before training (B2)."""
    bank, updates = case
    bank, one = exact(bank), updates[0]
    merged = merged_bank(bank, [one])
    for site, slots in one.slots.items():
        there = one.coverage > 0
        torch.testing.assert_close(offered(merged, one.entries)[site][there], slots[there].double())


@laws
@given(rounds(), st.integers(2, 4))
def test_equal_clients_are_as_one_of_them(case, copies):
    bank, updates = case
    one, bank = updates[0], exact(bank)
    many = merged_bank(bank, [replace(one, client=client) for client in range(copies)])
    single = merged_bank(bank, [one])
    for site in bank:
        torch.testing.assert_close(many[site], single[site])


@laws
@given(st.integers(0, 2**32), st.lists(st.integers(1, 900), min_size=1, max_size=4))
def test_h2_8_clients_that_are_alike_make_the_weighted_mean(seed, weights):
    """H2-8. The released code takes the unweighted mean, in the first client's own tensors (B22)."""
    generator = Rng(seed).torch()
    bank = {"query": torch.randn(3, SIZE, SIZE, generator=generator)}
    made = [torch.randn(3, SIZE * SIZE, generator=generator) for _ in weights]
    whole = leading(SIZE, SIZE).entries(SIZE)
    merged = merged_bank(
        bank, [update(c, one, whole, torch.ones(3), w) for c, (one, w) in enumerate(zip(made, weights, strict=True))]
    )
    mean = sum(w * one for w, one in zip(weights, made, strict=True)) / sum(weights)
    torch.testing.assert_close(merged["query"], mean.view(3, SIZE, SIZE), rtol=0, atol=1e-5)


@laws
@given(rounds(), st.integers(0, 2**32))
def test_h2_5_a_change_of_one_entry_shows_in_that_entry_and_in_no_other(case, seed):
    """H2-5. The released code sends what it captured before training: no change shows at all (B2)."""
    bank, updates = case
    bank, one = exact(bank), updates[0]
    site, slots = next(iter(one.slots.items()))
    slot, place = (
        int(torch.randint(n, (1,), generator=Rng(seed, (name,)).torch()))
        for name, n in zip("sp", slots.shape, strict=True)
    )
    other = slots.clone().double()
    other[slot, place] += 1
    moved = merged_bank(bank, [replace(one, slots={**one.slots, site: other})])[site] - merged_bank(bank, [one])[site]
    hit = torch.zeros(len(slots), SIZE * SIZE, dtype=torch.bool)
    hit[slot, one.entries[site][place]] = bool(one.coverage[slot] > 0)
    assert torch.equal(moved.flatten(1) != 0, hit)


@laws
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_h2_21_a_client_alone_gets_its_change_back_smoothed_over_layers(layers, slots, seed):
    """H2-21. What comes back from the released code is P P^T of random noise (B3, B4)."""
    shares = relation(depth_logits(layers, slots))
    change = torch.randn(layers, SIZE * SIZE, generator=Rng(seed).torch())
    whole = leading(SIZE, SIZE).entries(SIZE)

    def back(of):
        made = merged_bank(
            {"query": torch.zeros(slots, SIZE, SIZE)}, [update(0, lifted(of, shares), whole, shares.sum(1))]
        )
        return lowered(made["query"].flatten(1), shares)

    torch.testing.assert_close(back(change), smoothing(shares) @ change, rtol=0, atol=1e-5)
    same = torch.ones(layers, 1) * change[:1]
    torch.testing.assert_close(back(same), same, rtol=0, atol=1e-5)


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


def test_noise_as_large_as_the_bank_knows_nothing_of_it():
    bank = drawn_bank(("query",), 5, 32, Rng(0), 0.3)
    bank["query"][2] = 0
    noise = as_large(drawn_bank(("query",), 5, 32, Rng(1), 1.0), bank)
    norms = [matrices["query"].flatten(1).norm(dim=1) for matrices in (bank, noise)]
    torch.testing.assert_close(*norms)
    assert not noise["query"][2].any()
    cosine = (bank["query"] * noise["query"]).sum() / bank["query"].square().sum()
    assert abs(float(cosine)) < 0.05


def test_h2_4_what_is_offered_lowers_to_what_the_client_needs_of_the_whole_bank():
    """H2-4. In the released code the bank is loaded under a name that no parameter bears, and dropped (B1)."""
    bank = drawn_bank(("query", "value"), 4, 8, Rng(0), 1.0)
    entries = {"query": leading(3, 8).entries(8)}
    part = offered(bank, entries)
    assert {site: tensor.shape for site, tensor in part.items()} == {"query": (4, 9)}
    shares = relation(depth_logits(2, 4))
    torch.testing.assert_close(
        lowered(part["query"], shares), gathered(lowered(bank["query"], shares), entries["query"]), rtol=0, atol=1e-6
    )


# The wire ------------------------------------------------------------


@laws
@given(rounds())
def test_h2_15_slots_and_coverage_travel_and_come_back_the_same(case):
    """H2-15. The released code pickles whatever the dict holds (B21)."""
    _, updates = case
    for one in updates:
        params = to_params(one.slots, one.coverage)
        assert all(name == COVERAGE or name.startswith("bank.") for name in params)
        assert params[COVERAGE] is one.coverage
        assert slots_in({**params, "head.weight": torch.ones(1)}) == dict(one.slots)


@laws
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 8))
def test_h2_16_bytes_are_the_formula(slots, sites, rank):
    """H2-16. The released code sends every client the dense bank in 4 bytes a number: 12.85 MB each way."""
    for dtype, value_bytes in ((torch.float32, 4), (torch.bfloat16, 2)):
        names = [f"site{number}" for number in range(sites)]
        bank = {name: matrices.to(dtype) for name, matrices in drawn_bank(names, slots, 8, Rng(0)).items()}
        params = to_params(
            offered(bank, dict.fromkeys(names, leading(rank, 8).entries(8))), torch.ones(slots, dtype=dtype)
        )
        assert num_bytes(params) == exchange_bytes(slots, sites, rank**2, value_bytes=value_bytes)


def test_h2_16_a_one_billion_model_sends_half_a_percent_of_its_lora():
    """H2-16, for LLaMA 3.2 1B with query and value at rank 16; the released code sends 4 to 33 % of a LoRA."""
    found = load_model("shape:llama-3.2-1b", "causal-lm", num_classes=None, rng=Rng(0), meta=True)
    inject(found.model, found.blocks, LoraSettings(rank=16, alpha=16.0), ("q_proj", "v_proj"))
    where = layout(found.model, found.blocks, found.architecture)
    lora = num_bytes(trainable(found.model, where))
    sites = sites_of(places(adapters(found.model), found.blocks))
    assert (lora, where.num_layers, sites) == (6_815_744, 16, ("query", "value"))
    assert exchange_bytes(16, 2, 256) == 32_832
    assert 32_832 / lora < 0.005
    assert [exchange_bytes(16, 2, rank**2) for rank in (4, 8)] == [2112, 8256]


# What is refused ------------------------------------------------------------


GOOD = update(7, torch.zeros(2, 4), torch.tensor([0, 1, 4, 5]), torch.ones(2), 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": 0.0}, "weight is 0.0; it must be a number above 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"slots": {}}, "the update has no site"),
        ({"slots": {"gate": torch.zeros(2, 4)}}, "site 'gate' was not asked for"),
        ({"slots": {"query": torch.zeros(2, 3)}}, r"slots of 'query' are \(2, 3\), not \(2, 4\)"),
        ({"slots": {"query": torch.zeros(3, 4)}}, r"slots of 'query' are \(3, 4\)"),
        ({"slots": {"query": torch.full((2, 4), torch.inf)}}, "finite floating-point"),
        ({"slots": {"query": torch.zeros(2, 4, dtype=torch.int64)}}, "finite floating-point"),
        ({"coverage": torch.ones(3)}, r"coverage is \(3,\), not \(2,\)"),
        ({"coverage": torch.tensor([1.0, torch.nan])}, "coverage must be finite"),
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


@pytest.mark.parametrize(
    ("told", "num_layers", "held"),
    [
        ([1.0, 2.0], 3, [1.0, 2.0]),
        ([1.0, 2.02], 3, [1.0, 2.02]),  # rounding on the wire
        ([3e38, 3e38], 3, [1.5, 1.5]),
        ([0.0, 8.0], 2, [0.0, 2.0]),
        ([-3e38, 1.0], 2, [-3e38, 1.0]),  # below 0 counts as 0 where it is used
        ([-5.0, 30.0], 3, [0.0, 3.0]),
        ([0.0, 0.0], 2, [0.0, 0.0]),
    ],
)
def test_a_coverage_is_of_no_more_layers_than_there_are(told, num_layers, held):
    torch.testing.assert_close(at_most(torch.tensor(told), num_layers), torch.tensor(held))
