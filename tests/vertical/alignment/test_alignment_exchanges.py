"""The alignment of parties against Python's sets: who has which rows, who learns what, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from aligned_parties import Party, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import play, same, sender

from fedquilt.core.checks import reply_check
from fedquilt.core.errors import RoundError, TrainingError, WireError
from fedquilt.core.loop import rounds
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Turn
from fedquilt.core.wire import with_wire_dtype
from fedquilt.vertical.alignment.exchanges import ALIGNED
from fedquilt.vertical.alignment.wrapper import aligned_rows

pytest.importorskip("private_set_intersection")

KINDS = ("psi", "keyed-hash")
A = [f"row {number}" for number in (5, 3, 8, 1, 9, 2)]
B = [f"row {number}" for number in (2, 7, 9, 3, 4)]
C = [f"row {number}" for number in (3, 2, 9, 6)]


def found_ids(kind, active, *passive) -> list[list[str]]:
    """The ids of the common rows as the active party and each client have them after a round."""
    played = play(scene(kind, active, *passive), num_rounds=1)
    rows = [played.states[-1]["alignment"]["rows"], *(aligned_rows(played.memories[k]) for k in range(len(passive)))]
    return [[ids[row] for row in own.tolist()] for ids, own in zip((active, *passive), rows, strict=True)]


files = st.lists(
    st.lists(st.sampled_from([f"p{n}" for n in range(12)] + ["é", "Ω x", "0012"]), min_size=1, unique=True),
    min_size=2,
    max_size=4,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(files=files)
def test_all_parties_have_the_rows_of_pythons_intersection_in_one_order(kind, files) -> None:
    expected = set.intersection(*map(set, files))
    if not expected:
        with pytest.raises(RoundError, match=r"no id is held by all parties.*partition\.id"):
            found_ids(kind, *files)
        return
    active, *passive = found_ids(kind, *files)
    assert len(active) == len(expected)
    assert set(active) == expected
    assert all(own == active for own in passive)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_that_of_no_file_and_the_same_in_every_run(kind) -> None:
    ids = [f"row {number:03d}" for number in range(60)]
    first = found_ids(kind, ids, ids)[0]
    other = found_ids(kind, ids[::-1], ids[30:] + ids[:30])[0]
    assert first == other
    assert first not in (sorted(ids), sorted(ids)[::-1])
    ranks = torch.tensor([ids.index(one) for one in first]).double()
    assert abs(float(torch.corrcoef(torch.stack([ranks, torch.arange(60).double()]))[0, 1])) < 0.4


def test_messages_are_new_in_every_run_and_sorted_so_that_they_hide_the_order_of_a_file() -> None:
    seen = []
    for _ in range(2):
        lists = [
            sent[name] for sent in recorded(scene("psi", A, B, C))[0] for name in ("own", "others") if name in sent
        ]
        rows = [[bytes(row.tolist()) for row in one] for one in lists]
        assert len(rows) == 4
        assert all(own == sorted(own) for own in rows)
        seen.append({row for own in rows for row in own})
    assert not seen[0] & seen[1]


def recorded(setup):
    """The tensors of all messages of one round, and the orders by exchange."""
    tensors, orders, exchanges = [], {}, []
    for exchange in setup.method.exchanges:

        def ask(state, turn, exchange=exchange):
            asked = exchange.ask(state, turn)
            tensors.extend(dict(order.params) for order in asked.values())
            orders.setdefault(exchange.name, []).append(asked)
            return asked

        def work(client, order, memory, exchange=exchange):
            reply, after = exchange.work(client, order, memory)
            tensors.append(dict(reply.params))
            return reply, after

        exchanges.append(exchange._replace(ask=ask, work=work))
    play(setup._replace(method=setup.method._replace(exchanges=tuple(exchanges))), num_rounds=2)
    return tensors, orders


@pytest.mark.parametrize("kind", KINDS)
def test_the_alignment_is_done_once_and_leaves_no_key_behind(kind) -> None:
    setup = scene(kind, A, B, C)
    _, orders = recorded(setup)
    assert [[len(asked) for asked in orders[name]] for name in orders] == [[2, 0], [2, 0], [2, 0], [2, 2]]
    played = play(scene(kind, A, B, C), num_rounds=2)
    assert played.states[-1]["alignment"]["pending"] == {}
    assert all(set(memory) == {ALIGNED} for memory in played.memories.values())
    assert setup.method.report(played.states[-1]) == {"aligned_rows": {"active": 3, "0": 3, "1": 3}}
    assert same(played.states[1]["alignment"], played.states[2]["alignment"])
    assert played.states[-1]["counted"] == {"0": 3.0, "1": 3.0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_order_gets_the_same_answer(kind) -> None:
    setup = scene(kind, A, B, C)
    (reply, again), order = answered(setup, times=2)
    assert order.settings == {"ids": len(C)}
    assert same(reply.params, again.params)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_short_messages_round_no_blinded_id_and_no_place(dtype) -> None:
    setup = scene("psi", A, B, C)
    short = setup._replace(method=with_wire_dtype(setup.method, dtype))
    plain, rounded = (play(own, num_rounds=2) for own in (setup, short))
    assert same(plain.states[-1]["alignment"], rounded.states[-1]["alignment"])
    assert all(same(aligned_rows(plain.memories[k]), aligned_rows(rounded.memories[k])) for k in setup.clients)


def test_a_party_is_sent_no_more_than_the_size_of_the_active_file_and_its_own_common_rows() -> None:
    setup = scene("psi", A, B, C)
    _, orders = recorded(setup)
    for client, party in setup.clients.items():
        assert [{k: tuple(t.shape) for k, t in asked[0][client].params.items()} for asked in orders.values()] == [
            {},
            {"others": (len(A), 33)},
            {"places": (3,)},
            {},
        ]
        assert dict(orders["align-ids"][0][client].settings) == {"ids": len(party.ids)}
    # nothing of the active party's goes down under keyed-hash
    assert not recorded(scene("keyed-hash", A, B, C))[1]["align-ids"][0][0].params


# Who is late or fails ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_party_is_aligned_with_the_common_rows_and_changes_none(kind) -> None:
    late = [*B[1:], "row 1"]  # without row 2, which the others hold
    setup = scene(kind, A, C, late)

    def cohort(number):
        return setup.profiles[: 1 if number == 0 else 2]

    played = play(setup, num_rounds=3, cohort=cohort)
    before, after = (played.states[number]["alignment"] for number in (1, 3))
    assert same(before["rows"], after["rows"])
    ids = [A[row] for row in after["rows"].tolist()]
    assert set(ids) == {"row 2", "row 3", "row 9"}
    own = aligned_rows(played.memories[1]).tolist()
    assert [late[row] if row >= 0 else None for row in own] == [one if one != "row 2" else None for one in ids]
    assert after["holds"]["1"].tolist() == [one != "row 2" for one in ids]
    assert setup.method.report(played.states[3])["aligned_rows"] == {"active": 3, "0": 3, "1": 2}
    assert played.states[2]["counted"] == {"0": 3.0, "1": 3.0}


@pytest.mark.parametrize("exchange", ["align-keys", "align-ids", "align-places"])
def test_a_late_party_that_fails_disturbs_nobody_and_is_asked_again(exchange) -> None:
    setup = scene("psi", A, C, B)

    def away(client, name, number):
        return (client, name, number) == (1, exchange, 1)

    played = play(setup, num_rounds=3, cohort=lambda number: setup.profiles[: 1 if number == 0 else 2], away=away)
    assert [sorted(state["alignment"]["holds"]) for state in played.states] == [[], ["0"], ["0"], ["0", "1"]]
    assert all(state["alignment"]["pending"] == {} for state in played.states)
    assert played.states[2]["counted"] == {"0": 3.0}


@pytest.mark.parametrize("exchange", ["align-keys", "align-ids", "align-places"])
def test_the_first_alignment_needs_everybody(exchange) -> None:
    with pytest.raises(RoundError, match=r"without all parties of the first round \(client 1: did not answer\)"):
        play(scene("psi", A, B, C), num_rounds=1, away=lambda client, name, _: (client, name) == (1, exchange))


def test_a_late_party_without_a_common_row_is_named() -> None:
    setup = scene("psi", A, C, ["row 1", "row 77"])
    played = play(setup, num_rounds=2, cohort=lambda number: setup.profiles[: 1 if number == 0 else 2])
    assert setup.method.report(played.states[-1])["not_aligned"] == ["client 1: holds none of the common rows"]
    assert sorted(played.states[-1]["alignment"]["holds"]) == ["0"]


def test_parties_with_unlike_keys_have_nothing_in_common() -> None:
    setup = scene("keyed-hash", A, B, C)
    clients = {**setup.clients, 1: replace(setup.clients[1], id_key=b"another key of at least 32 bytes")}
    with pytest.raises(RoundError, match=r"6 ids, client 0 3, client 1 0\); .* all have one key"):
        play(setup._replace(clients=clients), num_rounds=1)


def test_a_client_without_ids_and_one_without_its_memory_say_what_is_missing() -> None:
    setup = scene("psi", A, B)
    with pytest.raises(TrainingError, match=r"no ids .* partition\.id"):
        setup.method.exchanges[0].work(object(), Order({}), {})
    with pytest.raises(TrainingError, match="not aligned, or its memory"):
        setup.method.exchanges[3].work(setup.clients[0], Order({}), {})
    for number in (1, 2):
        with pytest.raises(TrainingError, match="has no key for the alignment"):
            setup.method.exchanges[number].work(setup.clients[0], Order({}), {})


# Replies and orders that break the protocol ------------------------------------------------------------


def broken_by(change, *, checked=True):
    """The first round of a federation, in which client 1's blinded ids are changed by ``change(params)``."""
    setup = scene("psi", A, B, C)
    exchange = setup.method.exchanges[1]

    def work(client, order, memory):
        reply, after = exchange.work(client, order, memory)
        return (replace(reply, params=change(reply.params)) if client.id == 1 else reply), after

    exchanges = (setup.method.exchanges[0], exchange._replace(work=work), *setup.method.exchanges[2:])
    setup = setup._replace(method=setup.method._replace(exchanges=exchanges))
    rounds_of = played_with_checks if checked else lambda own: play(own, num_rounds=1)
    return rounds_of(setup)


def played_with_checks(setup):
    send = sender(setup.clients, {}, lambda *_: False)
    check = reply_check(setup.profiles)
    return [*rounds(setup.method, lambda number: setup.profiles, send, Rng(5), num_rounds=1, check=check)]


def no_point(params):
    own = params["own"].clone()
    own[-1] = 255  # the last in order still
    return {**params, "own": own}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: {**p, "own": p["own"].flip(0)}, "its blinded ids are not sorted"),
        (lambda p: {**p, "own": p["own"][:1].expand_as(p["own"])}, "not all unlike"),
        (no_point, "no point of the curve"),
        (lambda p: {**p, "again": p["own"][:1].expand_as(p["again"])}, None),  # equal, and found nowhere: no rows
    ],
)
def test_a_reply_that_breaks_the_protocol_is_refused_with_the_reason(change, reason) -> None:
    with pytest.raises(RoundError, match=(reason and rf"client 1: .*{reason}") or "no id is held by all"):
        broken_by(change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: {**p, "own": p["own"][:2]}, r"'own' has shape \(2, 33\), not \(4, 33\)"),
        (lambda p: {**p, "own": p["own"].int()}, "'own' is torch.int32"),
        (lambda p: {"own": p["own"]}, "'again' is missing"),
        (lambda p: {**p, "more": p["own"]}, "'more' was not asked for"),
    ],
)
def test_a_reply_of_another_form_never_reaches_the_merge(change, reason) -> None:
    with pytest.raises(RoundError, match="client 1: did not answer"):
        broken_by(change)
    setup = scene("psi", A, B, C)
    check, (*_, reply), order = reply_check(setup.profiles), *answered(setup)
    assert check(setup.method.exchanges[1], order, reply) is None
    assert reason.replace("\\", "") in check(
        setup.method.exchanges[1], order, replace(reply, params=change(reply.params))
    )


def answered(setup, times=1):
    """What client 1 answers to its order of the second exchange, as often as it is asked, and that order."""
    state, memory, turn = setup.method.init(Rng(1)), {}, Turn(0, setup.profiles, Rng(2))
    first, second = setup.method.exchanges[:2]
    replies = []
    for client, order in first.ask(state, turn).items():
        reply, memory[client] = first.work(setup.clients[client], order, {})
        replies.append(reply)
    order = second.ask(first.merge(state, iter(replies)), turn)[1]
    return [second.work(setup.clients[1], order, memory[1])[0] for _ in range(times)], order


@pytest.mark.parametrize("change", [lambda p: {"own": p["own"].int()}, lambda p: {"own": p["own"]}, lambda p: {}])
def test_the_merge_checks_the_form_too(change) -> None:
    with pytest.raises(RoundError, match=r"client 1: the blinded ids are"):
        broken_by(change, checked=False)


def test_equal_answers_to_unlike_ids_are_refused() -> None:
    setup = scene("psi", A, A)
    state, turn = setup.method.init(Rng(1)), Turn(0, setup.profiles, Rng(2))
    first, second = setup.method.exchanges[:2]
    reply, memory = first.work(setup.clients[0], first.ask(state, turn)[0], {})
    state = first.merge(state, iter([reply]))
    reply, _ = second.work(setup.clients[0], second.ask(state, turn)[0], memory)
    equal = replace(reply, params={**reply.params, "again": reply.params["again"][:1].expand_as(reply.params["again"])})
    with pytest.raises(RoundError, match=r"client 0: it has answered two of the blinded ids .* with the same"):
        second.merge(state, iter([equal]))


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (None, "are missing"),
        (torch.tensor([0.0]), "are torch.float32"),
        (torch.tensor([[0]]), "of one dimension"),
        (torch.tensor([0, 4]), "reach from 0 to 4; they must be from -1 to 3"),
        (torch.tensor([-2]), "reach from -2"),
        (torch.tensor([1, -1, 1]), "name a row twice"),
    ],
)
def test_a_client_refuses_places_that_are_none(places, reason) -> None:
    work = scene("psi", A, B).method.exchanges[2].work
    memory = {"aligning": {"key": torch.zeros(32, dtype=torch.uint8), "rows": torch.arange(4)}}
    with pytest.raises(WireError, match=reason):
        work(Party(0, C), Order({} if places is None else {"places": places}), memory)


@pytest.mark.parametrize(
    ("others", "count", "reason"),
    [
        (None, 4, "are missing"),
        (torch.zeros(3, 32, dtype=torch.uint8), 4, r"are torch.uint8 \(3, 32\); they must be .*, 33\)"),
        (torch.zeros(0, 33, dtype=torch.uint8), 4, r"\(0, 33\)"),
        (torch.zeros(2, 33, dtype=torch.uint8), 4, "no point of the curve"),
        (torch.zeros(2, 33, dtype=torch.uint8), 5, "another number of ids"),
    ],
)
def test_a_client_refuses_an_order_that_breaks_the_protocol(others, count, reason) -> None:
    first, second = scene("psi", A, B).method.exchanges[:2]
    _, memory = first.work(Party(0, C), Order({}), {})
    with pytest.raises(WireError, match=reason):
        second.work(Party(0, C), Order({} if others is None else {"others": others}, {"ids": count}), memory)
