"""What unlike groups want of the bank, made to agree where they meet, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.settings import AlignSettings
from fedquilt.bank.alignment import aligned_bank
from fedquilt.bank.merge import BankUpdate, merged_bank, offered
from fedquilt.bank.selection import drawn, leading
from fedquilt.core.errors import RoundError
from fedquilt.core.rng import Rng

laws = settings(max_examples=60, deadline=None)
SIZE, RULES = 4, ("projection", "reference", "soft")
every_rule = pytest.mark.parametrize("rule", RULES)
rules, dampings = st.sampled_from(RULES), st.sampled_from((0.0, 0.01, 0.3))


def update(client, slots, entries, weight=1.0, coverage=None):
    slots = torch.tensor(slots, dtype=torch.float64)
    coverage = torch.ones(len(slots)) if coverage is None else torch.tensor(coverage)
    return BankUpdate(client, {"query": slots}, {"query": torch.tensor(entries)}, coverage, weight)


def zeros(num_slots=1, size=2):
    return {"query": torch.zeros(num_slots, size, size, dtype=torch.float64)}


def aligned(bank, updates, rule="projection", seed=0, **numbers):
    return aligned_bank(bank, iter(updates), AlignSettings(rule), Rng(seed), **numbers)


@st.composite
def rounds(draw, most=3, change="random", dtype=torch.float64):
    """A bank, and pairs of group and update: 1 to 5 clients of unlike ranks, entries, sites, coverages and weights."""
    generator = Rng(draw(st.integers(0, 2**32)), ("bank",)).torch()
    slots = draw(st.integers(1, 3))
    bank = {site: torch.randn(slots, SIZE, SIZE, generator=generator).to(dtype) for site in ("query", "value")}
    updates = []
    for client in range(draw(st.integers(1, 5))):
        rank = draw(st.integers(1, SIZE))
        sites = draw(st.sampled_from([("query",), ("query", "value")]))
        entries = (leading(rank, SIZE) if draw(st.booleans()) else drawn(rank, SIZE, Rng(client))).entries(SIZE)
        coverage = torch.rand(slots, generator=generator) * draw(st.sampled_from((0.0, 0.01, 2.0)))
        held = dict.fromkeys(sites, entries)
        made = offered(bank, held)
        for site, sent in made.items() if change != "none" else ():
            moves = torch.randn(sent.shape, generator=generator).to(dtype)
            made[site] = sent + (moves.abs() if change == "orthant" else moves)
        one = BankUpdate(client, made, held, coverage + (1 if draw(st.booleans()) else 0), draw(st.integers(1, 500)))
        updates.append((f"g{draw(st.integers(0, most - 1))}", one))
    return bank, updates


def plain(bank, updates, **numbers):
    return merged_bank(bank, (one for _, one in updates), **numbers)


def same_bits(left, right):
    return all(torch.equal(left[site], right[site]) for site in left)


def holders(updates, site, slot):
    """By entry, the groups that have any of it, by the definition."""
    found = [set() for _ in range(SIZE * SIZE)]
    for group, one in updates:
        if site in one.slots and one.coverage[slot] > 0:
            for entry in one.entries[site].tolist():
                found[entry].add(group)
    return found


# Numbers worked by hand ------------------------------------------------------------


def test_projection_by_hand():
    """Wants (2, 0) and (-1, 1) become (1, 1) and (0, 1); what one group alone has it gets."""
    updates = [("vit", update(0, [[2.0, 0.0]], [0, 1])), ("bert", update(1, [[-1.0, 1.0, 5.0]], [0, 1, 2]))]
    moved, told = aligned(zeros(), updates)
    torch.testing.assert_close(moved["query"].flatten().tolist(), [0.5, 1.0, 5.0, 0.0])
    torch.testing.assert_close(told.gradient["query"].flatten().tolist(), [-1.0, -2.0, -5.0, 0.0])
    assert (told.groups, told.conflicts) == (("bert", "vit"), 1)
    # over what both have: -2 / (2 sqrt 2)
    torch.testing.assert_close(told.cosines.flatten().tolist(), [1.0, -(0.5**0.5), -(0.5**0.5), 1.0])
    half, _ = aligned(zeros(), updates, step=0.5)
    torch.testing.assert_close(half["query"].flatten().tolist(), [0.25, 0.5, 2.5, 0.0])


def test_groups_weigh_by_examples_and_coverage():
    """2 examples, half of whose layers belong here, weigh as 1 against 3; two clients of a group are its mean."""
    updates = [
        ("vit", update(0, [[1.0, 0.0]], [0, 1], weight=1)),
        ("bert", update(1, [[-1.0, 1.0]], [0, 1], weight=2, coverage=[0.5])),
        ("vit", update(2, [[2.5, 0.0]], [0, 1], weight=2)),
    ]
    # wants (2, 0) at 3/4 and (-1, 1) at 1/4, turned to (1, 1) and (0, 1)
    torch.testing.assert_close(aligned(zeros(), updates)[0]["query"].flatten().tolist(), [0.75, 1.0, 0.0, 0.0])


def test_reference_by_hand():
    """Wants (7, 0) at 3/4 and (-3, 4) at 1/4: the second goes against the mean direction and becomes (-3/2, 9/2)."""
    updates = [("a", update(0, [[7.0, 0.0]], [0, 3], weight=3)), ("b", update(1, [[-3.0, 4.0]], [0, 3]))]
    moved = aligned(zeros(), updates, "reference")[0]["query"].flatten().tolist()
    torch.testing.assert_close(moved, [4.875, 0.0, 0.0, 1.125])


def test_soft_by_hand():
    """Against three quarters the last quarter has no say, and the first is the mean of what counts."""
    updates = [("a", update(0, [[4.0]], [0], weight=3)), ("b", update(1, [[-8.0, 1.0]], [0, 1]))]
    torch.testing.assert_close(aligned(zeros(), updates, "soft")[0]["query"].flatten().tolist(), [4.0, 1.0, 0.0, 0.0])


def test_slots_are_aligned_one_by_one():
    """In the second slot both want the same, in the third the second group has no layer."""
    one = ("a", update(0, [[1.0], [1.0], [1.0]], [0]))
    other = ("b", update(1, [[-1.0], [3.0], [-9.0]], [0], coverage=[1.0, 1.0, 0.0]))
    moved, told = aligned(zeros(3, 1), [one, other])
    torch.testing.assert_close(moved["query"].flatten().tolist(), [0.0, 2.0, 1.0])
    assert told.conflicts == 1


def test_a_group_of_which_hardly_a_layer_belongs_to_a_slot_stops_nobody():
    """Projection minds directions, however small: without damping a share of a millionth would hold all back."""
    updates = [("a", update(0, [[1.0, 2.0]], [0, 1])), ("b", update(1, [[-1.0, -2.0]], [0, 1], coverage=[1e-6]))]
    assert aligned(zeros(), updates)[0]["query"].flatten().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-12)
    moved, told = aligned(zeros(), updates, damping=0.01)
    assert same_bits(moved, plain(zeros(), updates, damping=0.01))
    assert moved["query"].flatten().tolist() == pytest.approx([1, 2, 0, 0], abs=1e-5)
    assert (told.conflicts, float(told.cosines[0, 1])) == (0, 0.0)


# Laws ------------------------------------------------------------


@laws
@given(rounds(most=1, dtype=torch.float32), rules, dampings)
def test_one_group_is_the_plain_bank_to_the_bit(case, rule, damping):
    bank, updates = case
    moved, told = aligned(bank, updates, rule, step=0.7, damping=damping)
    assert same_bits(moved, plain(bank, updates, step=0.7, damping=damping))
    assert told.conflicts == 0


@laws
@given(rounds(change="orthant"), st.sampled_from(("projection", "reference")), dampings)
def test_without_conflict_it_is_the_plain_bank_to_the_bit(case, rule, damping):
    bank, updates = case
    moved, told = aligned(bank, updates, rule, damping=damping)
    assert told.conflicts == 0
    assert same_bits(moved, plain(bank, updates, damping=damping))


@laws
@given(rounds(), rules)
def test_what_one_group_alone_holds_moves_as_without_the_others_to_the_bit(case, rule):
    bank, updates = case
    moved, _ = aligned(bank, updates, rule)
    alone = {group: plain(bank, [one for one in updates if one[0] == group]) for group, _ in updates}
    for site, matrices in bank.items():
        for slot in range(len(matrices)):
            for entry, groups in enumerate(holders(updates, site, slot)):
                if len(groups) < 2:
                    expected = alone[groups.pop()][site] if groups else matrices
                    assert moved[site][slot].flatten()[entry] == expected[slot].flatten()[entry]


@laws
@given(rounds(change="none", dtype=torch.bfloat16), rules, dampings)
def test_clients_that_did_nothing_leave_every_bit(case, rule, damping):
    bank, updates = case
    moved, told = aligned(bank, updates, rule, damping=damping)
    assert same_bits(moved, bank)
    assert told.conflicts == 0
    assert not told.cosines.any()


@laws
@given(rounds(), rules, dampings, st.randoms(use_true_random=False))
def test_neither_the_order_of_clients_nor_the_unit_of_weights_matters(case, rule, damping, order):
    bank, updates = case
    mixed = [(group, replace(one, weight=one.weight * 8)) for group, one in updates]
    order.shuffle(mixed)
    (left, told), (right, again) = (aligned(bank, each, rule, damping=damping) for each in (updates, mixed))
    for site in bank:
        torch.testing.assert_close(left[site], right[site], rtol=1e-9, atol=1e-9)
    assert told.groups == again.groups
    torch.testing.assert_close(told.cosines, again.cosines)


@laws
@given(rounds(), rules, st.sampled_from((2.0**-10, 0.5, 4.0)))
def test_twice_the_changes_move_the_bank_twice_as_far(case, rule, factor):
    bank, updates = case
    origin = {site: torch.zeros_like(matrices) for site, matrices in bank.items()}  # so that nothing is rounded
    scaled = [
        (group, replace(one, slots={site: factor * slots for site, slots in one.slots.items()}))
        for group, one in updates
    ]
    (once, told), (more, again) = (aligned(origin, each, rule) for each in (updates, scaled))
    for site in bank:
        torch.testing.assert_close(more[site], factor * once[site], rtol=1e-9, atol=1e-9 * factor)
    assert told.conflicts == again.conflicts


@laws
@given(rounds(most=1), rules, st.integers(2, 4))
def test_equal_groups_are_as_one_of_them(case, rule, copies):
    bank, updates = case
    many = [(f"g{copy}", replace(one, client=copy)) for copy in range(copies) for _, one in updates]
    moved, told = aligned(bank, many, rule)
    for site, expected in plain(bank, updates).items():
        torch.testing.assert_close(moved[site], expected)
    assert told.conflicts == 0


@laws
@given(rounds(most=1), st.sampled_from(("projection", "soft")))
def test_two_groups_of_one_weight_that_want_the_opposite_leave_the_bank(case, rule):
    bank, updates = case
    against = []
    for _, one in updates:
        sent = offered(bank, one.entries)
        turned = {site: sent[site] - (slots - sent[site]) for site, slots in one.slots.items()}
        against.append(("other", replace(one, slots=turned)))
    moved, _ = aligned(bank, updates + against, rule)
    for site, matrices in bank.items():
        torch.testing.assert_close(moved[site], matrices, rtol=0, atol=1e-9)


@laws
@given(rounds(most=2))
def test_of_two_groups_neither_is_gone_against_where_they_meet(case):
    bank, updates = case
    moved, _ = aligned(bank, updates)
    groups = sorted({group for group, _ in updates})
    wants = {group: plain(bank, [one for one in updates if one[0] == group]) for group in groups}
    for site, matrices in bank.items():
        for slot, matrix in enumerate(matrices):
            met = torch.tensor([len(found) == 2 for found in holders(updates, site, slot)])
            weight = sum(_weights(updates, site, slot))  # the step is over it, entry by entry
            made = ((moved[site][slot] - matrix).flatten() * weight)[met]
            pulls = []
            for group in groups:
                own = [one for one in updates if one[0] == group]
                pulls.append(((wants[group][site][slot] - matrix).flatten() * sum(_weights(own, site, slot)))[met])
            longest = max(pull.norm() for pull in pulls)
            assert all(made @ pull >= -1e-9 * longest**2 for pull in pulls)


def _weights(updates, site, slot):
    """The weight behind each entry, client by client."""
    for _, one in updates:
        weights = torch.zeros(SIZE * SIZE, dtype=torch.float64)
        if site in one.slots:
            weights[one.entries[site]] = one.weight * one.coverage[slot].double()
        yield weights


@every_rule
def test_the_same_stream_gives_the_same_bits_and_inputs_stay_as_they_were(rule):
    generator = Rng(3).torch()
    bank = {"query": torch.zeros(2, SIZE, SIZE)}
    entries = {"query": leading(SIZE, SIZE).entries(SIZE)}
    made = [torch.randn(2, 16, generator=generator) + (-1 if client == 5 else 1) for client in range(6)]
    updates = [
        (f"g{client}", BankUpdate(client, {"query": slots}, entries, torch.ones(2), 1))
        for client, slots in enumerate(made)
    ]
    before = [bank["query"].clone(), *(one.slots["query"].clone() for _, one in updates)]
    results = [aligned(bank, updates, rule, seed)[0]["query"] for seed in (0, 0, *range(1, 6))]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:]) == (rule == "projection")
    after = [bank["query"], *(one.slots["query"] for _, one in updates)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.equal(results[0], plain(bank, updates)["query"])


def test_a_site_that_nobody_sent_is_the_same_object():
    bank = {**zeros(), "value": torch.ones(1, 2, 2)}
    moved, told = aligned(bank, [("a", update(0, [[1.0]], [0])), ("b", update(1, [[-1.0]], [0]))])
    assert moved["value"] is bank["value"]
    assert list(moved) == ["query", "value"]
    assert list(told.gradient) == ["query"]


def test_an_empty_round_and_an_update_that_does_not_fit_are_refused():
    with pytest.raises(RoundError, match="no updates to merge into the bank; at least one client must answer"):
        aligned(zeros(), [])
    with pytest.raises(RoundError, match=r"client 7: weight is 0.0; it must be a number above 0"):
        aligned(zeros(), [("a", update(0, [[1.0]], [0])), ("b", update(7, [[1.0]], [0], weight=0.0))])
