"""The loop: what is asked, sent and merged, in which order, and what happens when it goes wrong."""

import math
from collections.abc import Iterator

import pytest
import torch

from fedquilt.core.errors import RoundError, TrainingError
from fedquilt.core.loop import perform, refusal, rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Failure, Order, Profile, Reply

NAN, INF = float("nan"), float("inf")
PROFILES = tuple(Profile(k, 10 + k, "toy", Budget(1), "toy") for k in range(4))


def everyone(number):
    return PROFILES


def method_of(*names, log=None, asked=lambda name, turn: [p.id for p in turn.cohort]) -> Method:
    """A method whose state is a number per exchange and whose clients answer with what their own stream draws."""
    log = [] if log is None else log

    def exchange(name: str) -> Exchange:
        def ask(state, turn):
            log.append(("ask", name, turn.round))
            return {k: Order({"x": state["x"]}, {"exchange": name}) for k in asked(name, turn)}

        def work(client, order, memory):
            log.append(("work", name, order.round, client))
            step = torch.rand(2, generator=order.rng.torch())
            return Reply(client, {"x": order.params["x"] + step}, 1.0 + client, {"loss": 0.5}), memory

        def merge(state, replies):
            total, weight = torch.zeros(2), 0.0
            for reply in replies:
                log.append(("merge", name, reply.client))
                total, weight = total + reply.weight * reply.params["x"], weight + reply.weight
            return {"x": total / weight}

        return Exchange(name, ask, work, merge)

    def init(rng):
        return {"x": torch.rand(2, generator=rng.torch())}

    return Method("toy", init, tuple(exchange(name) for name in names), lambda state, profile: Order(state))


def send(exchange, orders):
    for client, order in orders.items():
        reply, _ = perform(exchange, client, client, order, {})
        yield reply


def replying(**replies):
    """A ``send`` that gives these answers in place of a client's own; None for silence."""

    def spoiled(exchange, orders):
        for client, order in orders.items():
            answer = replies.get(f"c{client}", ...)
            if answer is ...:
                yield perform(exchange, client, client, order, {})[0]
            elif answer is not None:
                yield answer

    return spoiled


# The course of a round ------------------------------------------------------------


def test_exchanges_run_in_order_and_each_reply_is_merged_as_it_comes():
    log = []
    done = list(rounds(method_of("one", "two", log=log), everyone, send, Rng(0), num_rounds=2))
    expected = []
    for number in range(2):
        for name in ("one", "two"):
            expected.append(("ask", name, number))
            for client in range(4):
                expected += [("work", name, number, client), ("merge", name, client)]
    assert log == expected
    assert [r.number for r in done] == [0, 1]
    assert [[t.exchange for t in r.traffic] for r in done] == [["one", "two"]] * 2
    assert all(r.seconds >= 0 for r in done)


def test_rounds_are_made_one_by_one_as_they_are_wanted():
    log = []
    course = rounds(method_of("fit", log=log), everyone, send, Rng(0), num_rounds=100)
    assert isinstance(course, Iterator)
    assert log == []
    next(course)
    assert {entry[2] for entry in log if entry[0] == "ask"} == {0}


def test_orders_are_stamped_with_the_round_and_a_stream_of_their_own():
    seen = {}

    def record(exchange, orders):
        for client, order in orders.items():
            seen[exchange.name, order.round, client] = order.rng
        return send(exchange, orders)

    list(rounds(method_of("one", "two"), everyone, record, Rng(9), num_rounds=3))
    assert seen["two", 1, 3] == Rng(9).child("round", 1, "client", 3, "two").sealed()
    assert all(rng.seed != 9 and rng.path == () for rng in seen.values()), "a client could list everyone's streams"
    assert len(seen) == 3 * 2 * 4
    assert len({rng.integer() for rng in seen.values()}) == len(seen)


def test_a_stamp_of_the_methods_own_is_overwritten_and_its_order_is_not_changed():
    kept = Order({"x": torch.zeros(2)}, {"a": 1}, round=77, rng=Rng(123))

    def record(exchange, orders):
        stamped = Rng(4).child("round", 0, "client", 2, "fit").sealed()
        assert [(order.round, order.rng) for order in orders.values()] == [(0, stamped)]
        return send(exchange, orders)

    method = method_of("fit")
    (fit,) = method.exchanges
    method = method._replace(exchanges=(fit._replace(ask=lambda state, turn: {2: kept}),))
    assert len(list(rounds(method, everyone, record, Rng(4), num_rounds=1))) == 1
    assert (kept.round, kept.rng) == (77, Rng(123))


def test_ask_sees_the_cohort_of_the_round_and_one_stream_for_all_its_exchanges():
    turns = []

    def asked(name, turn):
        turns.append(turn)
        return [p.id for p in turn.cohort]

    cohorts = [PROFILES[:2], PROFILES[2:]]
    done = list(rounds(method_of("one", "two", asked=asked), cohorts.__getitem__, send, Rng(1), num_rounds=2))
    assert [(t.round, t.cohort) for t in turns] == [(0, cohorts[0])] * 2 + [(1, cohorts[1])] * 2
    assert [t.rng for t in turns] == [Rng(1).child("round", n) for n in (0, 0, 1, 1)]
    assert [sorted(r.traffic[0].bytes_down) for r in done] == [[0, 1], [2, 3]]


def test_clients_are_asked_and_merged_in_client_order_whatever_order_ask_gives():
    log = []
    method = method_of("fit", log=log, asked=lambda name, turn: [2, 0, 3, 1])
    list(rounds(method, everyone, send, Rng(0), num_rounds=1))
    assert [entry[2] for entry in log if entry[0] == "merge"] == [0, 1, 2, 3]


def test_an_exchange_that_asks_nobody_is_skipped_and_sends_nothing():
    log = []

    def asked(name, turn):
        return [] if name == "rare" and turn.round == 0 else [0]

    def record(exchange, orders):
        log.append(("send", exchange.name))
        return send(exchange, orders)

    first, second = rounds(method_of("rare", "fit", log=log, asked=asked), everyone, record, Rng(0), num_rounds=2)
    rare, fit = first.traffic
    assert (rare.exchange, rare.bytes_down, rare.bytes_up, rare.dropped) == ("rare", {}, {}, {})
    assert fit.bytes_up == {0: 8}
    assert second.traffic[0].bytes_up == {0: 8}
    assert [entry for entry in log if entry[0] == "send"] == [("send", "fit"), ("send", "rare"), ("send", "fit")]


def test_a_round_in_which_nobody_is_eligible_leaves_the_very_same_state():
    state = {"x": torch.ones(2)}
    method = method_of("fit", asked=lambda name, turn: [])
    (done,) = rounds(method, everyone, send, Rng(0), num_rounds=1, state=state, quorum=1.0)
    assert done.state is state


def test_an_empty_cohort_is_refused_with_the_rounds_number():
    course = rounds(method_of("fit"), lambda n: PROFILES if n == 0 else (), send, Rng(0), num_rounds=3)
    next(course)
    with pytest.raises(RoundError, match=r"^round 2: the cohort is empty; a round needs at least one client$"):
        next(course)


def test_init_is_given_a_stream_of_its_own_and_only_without_a_state():
    (done,) = rounds(method_of(), everyone, send, Rng(6), num_rounds=1)
    assert torch.equal(done.state["x"], torch.rand(2, generator=Rng(6).child("init").torch()))
    own = {"x": torch.full((2,), 7.0)}
    (done,) = rounds(method_of(), everyone, send, Rng(6), num_rounds=1, state=own)
    assert done.state is own


@pytest.mark.parametrize("start", [1, 3, 4])
def test_resuming_equals_one_uninterrupted_run_to_the_bit(start):
    method = method_of("one", "two")
    whole = list(rounds(method, everyone, send, Rng(2), num_rounds=5))
    state = {"x": whole[start - 1].state["x"].clone()}
    rest = list(rounds(method, everyone, send, Rng(2), num_rounds=5, state=state, start=start))
    assert [r.number for r in rest] == list(range(start, 5))
    assert all(torch.equal(a.state["x"], b.state["x"]) for a, b in zip(whole[start:], rest, strict=True))


def test_nothing_is_left_to_do_after_the_last_round():
    assert list(rounds(method_of("fit"), everyone, send, Rng(0), num_rounds=3, start=3)) == []


def test_one_seed_one_result():
    def last(seed):
        *_, done = rounds(method_of("fit"), everyone, send, Rng(seed), num_rounds=3)
        return done.state["x"]

    assert torch.equal(last(1), last(1))
    assert not torch.equal(last(1), last(2))


# Traffic ------------------------------------------------------------


def test_traffic_counts_tensor_bytes_each_way_and_keeps_settings_and_metrics():
    def work(client, order, memory):
        return Reply(client, {"b": torch.zeros(5, dtype=torch.bfloat16)}, 2.0, {"loss": 0.25, "steps": 3}), memory

    ask = lambda state, turn: {1: Order({"a": torch.zeros(3), "b": torch.zeros(())}, {"layers": [0, 1]})}  # noqa: E731
    method = Method(
        "m", lambda rng: 0, (Exchange("fit", ask, work, lambda s, r: len(list(r))),), lambda s, p: Order({})
    )
    (done,) = rounds(method, everyone, send, Rng(0), num_rounds=1)
    (moved,) = done.traffic
    assert moved.bytes_down == {1: 16}
    assert moved.bytes_up == {1: 10}
    assert moved.settings == {1: {"layers": [0, 1]}}
    assert moved.metrics == {1: {"loss": 0.25, "steps": 3}}
    assert moved.dropped == {}
    assert done.state == 1


# Replies that cannot be used ------------------------------------------------------------

GOOD = {"x": torch.ones(2)}
BAD = [
    (Reply(1, GOOD, 1.0, {"loss": NAN}), "loss is nan"),
    (Reply(1, GOOD, 1.0, {"steps": 3, "loss": INF}), "loss is inf"),
    (Reply(1, GOOD, 1.0, {"loss": -INF}), "loss is -inf"),
    (Reply(1, {"y": torch.ones(1), "x": torch.tensor([1.0, INF])}, 1.0), "tensor 'x' is not finite"),
    (Reply(1, {"x": torch.tensor([NAN, 0.0])}, 1.0), "tensor 'x' is not finite"),
    (Reply(1, {"": torch.tensor([NAN, 0.0])}, 1.0), "tensor '' is not finite"),
    (Reply(1, GOOD, 0.0), "weight is 0.0, not a number above 0"),
    (Reply(1, GOOD, -3.0), "weight is -3.0, not a number above 0"),
    (Reply(1, GOOD, NAN), "weight is nan, not a number above 0"),
    (Reply(1, GOOD, INF), "weight is inf, not a number above 0"),
    (Failure(1, "loss is nan at step 3"), "loss is nan at step 3"),
    (None, "sent no reply"),
]


@pytest.mark.parametrize(("answer", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_an_unusable_reply_is_dropped_with_its_reason_and_the_round_goes_on(answer, reason):
    log = []
    (done,) = rounds(method_of("fit", log=log), everyone, replying(c1=answer), Rng(0), num_rounds=1)
    (moved,) = done.traffic
    assert moved.dropped == {1: reason}
    assert sorted(moved.bytes_up) == sorted(moved.metrics) == [0, 2, 3]
    assert sorted(moved.bytes_down) == [0, 1, 2, 3]
    assert [entry[2] for entry in log if entry[0] == "merge"] == [0, 2, 3]
    assert torch.isfinite(done.state["x"]).all()


@pytest.mark.parametrize(("answer", "reason"), BAD[:10], ids=[reason for _, reason in BAD[:10]])
def test_refusal_says_why(answer, reason):
    assert refusal(answer) == reason


def test_refusal_lets_good_replies_pass():
    assert refusal(Reply(0, {}, 1)) is None
    assert refusal(Reply(0, {"rows": torch.tensor([1, 2])}, 0.5, {"loss": 0.0, "steps": 3})) is None


def test_dropping_a_client_does_not_move_the_others():
    seen = []

    def spy(exchange, orders):
        for reply in replying(c0=None)(exchange, orders):
            seen.append(reply)
            yield reply

    list(rounds(method_of("fit"), everyone, spy, Rng(0), num_rounds=1))
    with_all = []
    list(
        rounds(
            method_of("fit"), everyone, lambda e, o: (with_all.append(r) or r for r in send(e, o)), Rng(0), num_rounds=1
        )
    )
    assert [r.client for r in seen] == [1, 2, 3]
    assert all(torch.equal(a.params["x"], b.params["x"]) for a, b in zip(seen, with_all[1:], strict=True))


def test_a_merge_that_stops_early_does_not_make_the_others_silent():
    method = method_of("fit")
    (fit,) = method.exchanges
    method = method._replace(
        exchanges=(fit._replace(merge=lambda state, replies: {"x": next(iter(replies)).params["x"]}),)
    )
    (done,) = rounds(method, everyone, send, Rng(0), num_rounds=1, quorum=1.0)
    assert sorted(done.traffic[0].bytes_up) == [0, 1, 2, 3]
    assert done.traffic[0].dropped == {}


# Quorum and failed rounds ------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "blamed"),
    [((0, 2, 9), 9), ((0, 1, 1), 1), ((0, 2, 1), 1), ((1, 0), 0)],
    ids=["unasked", "twice", "out of order", "out of order from the start"],
)
@pytest.mark.parametrize("failed", [False, True], ids=["reply", "failure"])
def test_an_engine_that_gives_replies_unasked_twice_or_out_of_order_is_stopped(clients, blamed, failed):
    """The sums of a merge depend on the order of replies: engines agree to the bit only as long as they keep it."""

    def mistaken(exchange, orders):
        for place, client in enumerate(clients):
            if failed and place == len(clients) - 1:
                yield Failure(client, "is gone")
            else:
                yield Reply(client, {"x": torch.zeros(2)}, 1.0)

    going = rounds(method_of("fit"), everyone, mistaken, Rng(1), num_rounds=1)
    with pytest.raises(
        ValueError, match=rf"^the engine gave a reply of client {blamed} unasked, twice or out of order"
    ):
        next(going)


@pytest.mark.parametrize(
    ("quorum", "num_good", "enough"),
    [
        (0.0, 1, True),
        (0.0, 0, False),
        (0.5, 2, True),
        (0.5, 1, False),
        (0.51, 2, False),
        (1.0, 4, True),
        (1.0, 3, False),
    ],
)
def test_quorum_is_the_share_of_the_asked_clients_that_must_answer(quorum, num_good, enough):
    silent = {f"c{k}": None for k in range(num_good, 4)}
    course = rounds(method_of("fit"), everyone, replying(**silent), Rng(0), num_rounds=1, quorum=quorum)
    if enough:
        assert len(next(course).traffic[0].bytes_up) == num_good
    else:
        with pytest.raises(RoundError, match=f"{num_good} of 4 clients sent a usable reply"):
            next(course)


@pytest.mark.parametrize(
    ("quorum", "num_clients", "needed"), [(0.07, 100, 7), (0.28, 25, 7), (0.1, 30, 3), (0.3, 10, 3)]
)
def test_quorum_is_exact_where_binary_fractions_are_not(quorum, num_clients, needed):
    cohort = tuple(Profile(k, 1, "toy", Budget(1), "toy") for k in range(num_clients))
    for num_good in (needed, needed - 1):
        silent = {f"c{k}": None for k in range(num_good, num_clients)}
        course = rounds(method_of("fit"), lambda n: cohort, replying(**silent), Rng(0), num_rounds=1, quorum=quorum)
        if num_good == needed:
            assert len(next(course).traffic[0].bytes_up) == needed
        else:
            with pytest.raises(RoundError, match=f"{needed} are needed"):
                next(course)


def test_quorum_counts_the_asked_clients_and_not_the_cohort():
    method = method_of("fit", asked=lambda name, turn: [0])
    (done,) = rounds(method, everyone, send, Rng(0), num_rounds=1, quorum=1.0)
    assert sorted(done.traffic[0].bytes_up) == [0]


def test_the_error_of_a_failed_round_names_the_round_the_exchange_and_every_cause():
    answers = replying(c0=Failure(0, "out of memory"), c1=None, c3=Reply(3, GOOD, 1.0, {"loss": NAN}))
    course = rounds(
        method_of("fit"), everyone, answers, Rng(0), num_rounds=5, start=4, quorum=0.5, state={"x": GOOD["x"]}
    )
    with pytest.raises(RoundError) as caught:
        next(course)
    assert str(caught.value) == (
        "round 5, exchange 'fit': 1 of 4 clients sent a usable reply and 2 are needed "
        "(client 0: out of memory; client 1: sent no reply; client 3: loss is nan)"
    )


def test_a_round_that_fails_late_leaves_the_state_of_the_round_before():
    def fails_in_two(exchange, orders):
        for reply in send(exchange, orders):
            last = exchange.name == "two" and orders[reply.client].round == 1
            yield Failure(reply.client, "is away") if last else reply

    log = []
    method = method_of("one", "two", log=log)
    course = rounds(method, everyone, fails_in_two, Rng(3), num_rounds=3)
    first = next(course)
    kept = first.state["x"].clone()
    with pytest.raises(RoundError, match="round 2, exchange 'two': 0 of 4"):
        next(course)
    assert ("merge", "one", 3) in log
    assert torch.equal(first.state["x"], kept)
    assert next(course, None) is None  # a failed course is over; it does not skip the round
    again = list(rounds(method, everyone, send, Rng(3), num_rounds=3, state=first.state, start=1))
    whole = list(rounds(method, everyone, send, Rng(3), num_rounds=3))
    assert torch.equal(again[-1].state["x"], whole[-1].state["x"])


def test_merge_is_not_called_when_nobody_answers():
    log = []
    silent = replying(c0=None, c1=None, c2=None, c3=None)
    with pytest.raises(RoundError, match="0 of 4 clients sent a usable reply and 1 are needed"):
        next(rounds(method_of("fit", log=log), everyone, silent, Rng(0), num_rounds=1))
    assert [entry for entry in log if entry[0] == "merge"] == []


def test_a_mistake_in_a_method_is_not_taken_for_a_failed_client():
    method = method_of("fit")
    (fit,) = method.exchanges

    def mistaken(*arguments):
        raise KeyError("no such tensor")

    for change in ({"ask": mistaken}, {"work": mistaken}, {"merge": mistaken}):
        spoiled = method._replace(exchanges=(fit._replace(**change),))
        with pytest.raises(KeyError, match="no such tensor"):
            next(rounds(spoiled, everyone, send, Rng(0), num_rounds=1))


# The client's side ------------------------------------------------------------


def working(reply=None, memory=None, error=None) -> Exchange:
    def work(client, order, given):
        if error is not None:
            raise error
        return reply, memory

    return Exchange("fit", None, work, None)


OLD = {"params": {"own": torch.ones(2)}, "rounds": 3}


def test_perform_gives_the_reply_and_the_new_memory():
    reply, new = Reply(4, GOOD, 2.0, {"loss": 0.1}), {"params": {"own": torch.zeros(2)}}
    answer, memory = perform(working(reply, new), "client", 4, Order({}), OLD)
    assert answer is reply
    assert memory is new


def test_perform_passes_on_what_it_was_given():
    seen = []

    def work(client, order, memory):
        seen.append((client, order, memory))
        return Reply(4, {}, 1.0), memory

    order = Order({})
    perform(Exchange("fit", None, work, None), "client", 4, order, OLD)
    ((client, given, memory),) = seen
    assert client == "client"
    assert given is order
    assert memory is OLD


def test_a_failure_at_work_keeps_the_old_memory_and_its_reason():
    answer, memory = perform(working(error=TrainingError("loss is nan at step 3")), "client", 4, Order({}), OLD)
    assert answer == Failure(4, "loss is nan at step 3")
    assert memory is OLD


@pytest.mark.parametrize(("reply", "reason"), BAD[:10], ids=[reason for _, reason in BAD[:10]])
def test_a_result_that_is_not_finite_keeps_the_old_memory(reply, reason):
    answer, memory = perform(working(reply, {"rounds": 4}), "client", 1, Order({}), OLD)
    assert answer == Failure(1, reason)
    assert memory is OLD


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_private_part_that_is_not_finite_keeps_the_old_memory(value):
    # a vertical party's reply to backprop is empty: only its memory shows that the encoder broke
    broken = {"params": {"encoder": torch.tensor([1.0, value])}}
    answer, memory = perform(working(Reply(1, {}, 1.0), broken), "client", 1, Order({}), OLD)
    assert answer == Failure(1, "the client's own tensor 'encoder' is not finite")
    assert memory is OLD
    assert math.isfinite(memory["params"]["own"].sum())


def test_a_mistake_at_work_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        perform(working(error=ZeroDivisionError()), "client", 1, Order({}), OLD)
