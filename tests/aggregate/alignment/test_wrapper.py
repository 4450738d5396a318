"""Alignment around a method that only takes means."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.alignment.gradients import aligned_step
from fedquilt.aggregate.alignment.pseudo_gradients import Gathered
from fedquilt.aggregate.alignment.wrapper import group_of, with_alignment
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.aggregate.settings import AlignSettings
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Order, Profile, Reply

BASE = {"m.a": torch.tensor([1.0, 0.0]), "m.b": torch.tensor([0.0, 2.0]), "own": torch.tensor([5.0])}
SHARED = ("m.a", "m.b")
PROFILES = tuple(
    Profile(id, 10 * (id + 1), ("vit", "llama", "vit", "bert")[id], Budget(1), "toy", ("x", "y")[id % 2])
    for id in range(4)
)


def averaging(state=None, seen=None):
    """A method that averages, and keeps what its ``merge`` was given in ``seen``."""

    def merge(state, replies: Iterable[Reply]):
        def noted():
            for reply in replies:
                if seen is not None:
                    seen.append(reply)
                yield reply

        return {**state, "params": layerwise_mean(state["params"], noted())}

    fit = Exchange("fit", lambda state, turn: {}, lambda client, order, memory: (order, memory), merge)
    first = {"params": BASE} if state is None else state
    return Method("averaging", lambda rng: first, (fit,), lambda state, profile: Order(state["params"]))


def wrapped(method=None, rule="projection", groups="architecture", **more):
    method = method or averaging()
    return with_alignment(method, PROFILES, SHARED.__contains__, AlignSettings(rule), groups=groups, **more)


def replies_of(values, steps=None):
    """One reply a client, in which each tensor has moved by its row of numbers."""
    made = []
    for id, row in enumerate(values):
        moves = torch.tensor(row, dtype=torch.float32)
        params = {"m.a": BASE["m.a"] + moves[:2], "m.b": BASE["m.b"] + moves[2:4], "own": BASE["own"] + moves[4:]}
        metrics = {} if steps is None else {"steps": float(steps[id])}
        made.append(Reply(id, params, 10.0 * (id + 1), metrics))
    return made


def merged(method, replies, state=None):
    state = method.init(Rng(1)) if state is None else state
    return method.exchanges[0].merge(state, iter(replies))


rows = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=4)


@pytest.mark.parametrize("rule", ["projection", "reference", "soft", "mean"])
@given(values=rows)
@settings(max_examples=25, deadline=None)
def test_the_result_is_that_of_the_aligned_step_and_other_tensors_are_averaged_as_ever(rule, values):
    replies = replies_of(values, steps=[3, 1, 4, 2])
    method = wrapped(rule=rule)
    state = method.init(Rng(1))
    after = merged(method, replies, state)["params"]
    shared = {name: BASE[name] for name in SHARED}
    gathered = Gathered(shared)
    for r in replies:
        own = Reply(r.client, {n: r.params[n] for n in SHARED}, r.weight)
        gathered.add(PROFILES[r.client].architecture, own, r.metrics["steps"])
    rng = Rng(state["align"]["seed"]).child("merge", 0)
    expected, _ = aligned_step(shared, gathered.gradients(), AlignSettings(rule), rng)
    for name in SHARED:
        torch.testing.assert_close(after[name], expected[name], rtol=0, atol=1e-6)
    assert torch.equal(after["own"], layerwise_mean(BASE, replies)["own"])


def test_with_equal_steps_and_no_conflict_it_is_the_method_itself():
    replies = replies_of([[0.5, 0.1, 0.2, 0.3, 1.0], [0.2, 0.4, 0.1, 0.1, 2.0], [0.3, 0.3, 0.5, 0.0, 3.0]])
    plain, ours = merged(averaging(), replies), merged(wrapped(), replies)
    assert ours["conflicts"] == 0
    for name in BASE:
        torch.testing.assert_close(ours["params"][name], plain["params"][name], rtol=0, atol=1e-6)


def test_two_groups_that_pull_apart_do_not_undo_each_other():
    """By hand: gradients (-1, 0) and (1, -1) of equal weight; projected (-1/2, -1/2) and (0, -1); the mean moves it."""
    replies = replies_of([[1, 0, 0, 0, 0], [-1, 1, 0, 0, 0]])
    replies = [Reply(reply.client, reply.params, 10.0) for reply in replies]
    ours = merged(wrapped(), replies)
    assert ours["conflicts"] == 1
    torch.testing.assert_close(ours["params"]["m.a"], BASE["m.a"] + torch.tensor([0.25, 0.75]))


def test_replies_pass_one_by_one_and_the_last_word_is_the_servers():
    seen = []
    replies = replies_of([[0.1] * 5, [0.2] * 5, [0.3] * 5])
    after = merged(wrapped(averaging(seen=seen)), replies)
    assert [sorted(reply.params) for reply in seen] == [["own"]] * 3 + [["m.a", "m.b"]]
    assert seen[-1].metrics == {}
    assert all(torch.equal(seen[-1].params[name], after["params"][name]) for name in SHARED)


def test_a_tensor_that_nobody_sent_is_the_same_object_and_one_that_came_back_the_same_bits():
    replies = [Reply(0, {"m.a": BASE["m.a"], "own": BASE["own"]}, 10.0, {"steps": 3.0})]
    after = merged(wrapped(), replies)["params"]
    assert after["m.b"] is BASE["m.b"]
    assert torch.equal(after["m.a"], BASE["m.a"])


def test_the_record_is_in_the_order_of_names_and_zero_for_who_was_away():
    state = merged(wrapped(), replies_of([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]))  # vit and llama; bert is away
    assert state["cosines"] == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 1])  # bert, llama, vit
    assert wrapped().init(Rng(1))["cosines"] == [0.0] * 9


def test_more_groups_than_the_record_can_hold_keep_no_cosines():
    many = tuple(Profile(id, 5, "vit", Budget(1), "toy") for id in range(17))
    method = with_alignment(averaging(), many, SHARED.__contains__, AlignSettings("projection"), groups="client")
    state = merged(method, replies_of([[1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]))
    assert state["cosines"] == []
    assert state["conflicts"] == 1


def test_draws_go_on_from_merge_to_merge_and_a_stopped_run_repeats_them():
    values = [[1, 0, 0, 0, 0], [-1, 1, 0, 0, 0], [0, -1, 0, 0, 0], [-1, -1, 0, 0, 0]]
    method = wrapped(groups="client")
    first = merged(method, replies_of(values))
    assert first["align"]["merges"] == 1
    again, other = merged(method, replies_of(values), first), merged(method, replies_of(values), first)
    assert torch.equal(again["params"]["m.a"], other["params"]["m.a"])
    assert again["align"]["merges"] == 2


@pytest.mark.parametrize(
    ("groups", "expected"), [("architecture", "llama"), ("group", "y"), ("client", "client 000000001")]
)
def test_who_is_aligned_with_whom(groups, expected):
    assert group_of(PROFILES[1], groups) == expected


def test_a_client_that_tells_less_than_a_step_counts_as_one_step():
    """A number of steps near zero would otherwise make its update as large as it likes."""
    values = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    told, honest = replies_of(values, steps=[1e-9, 1]), replies_of(values, steps=[1, 1])
    assert torch.equal(merged(wrapped(), told)["params"]["m.a"], merged(wrapped(), honest)["params"]["m.a"])


@pytest.mark.parametrize("lie", [1e12, 1.0])
def test_where_the_server_knows_the_steps_a_clients_own_word_is_not_asked(lie):
    """Many would throw what all share anywhere, as the server steps by their mean; few make its own pull harder."""
    values = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    told, honest = replies_of(values, steps=[lie, 4]), replies_of(values, steps=[4, 4])
    asked = []

    def local_steps(profile):
        asked.append((profile.id, profile.num_examples))
        return 4

    knowing, trusting = wrapped(local_steps=local_steps), wrapped()
    expected = merged(trusting, honest)["params"]["m.a"]
    assert torch.equal(merged(knowing, told)["params"]["m.a"], expected)
    assert torch.equal(merged(knowing, honest)["params"]["m.a"], expected)
    assert not torch.equal(merged(trusting, told)["params"]["m.a"], expected)
    assert asked[:2] == [(0, 10), (1, 20)]
    few = [replace(told[0], weight=2.5), told[1]]  # it announced 10 examples, and counts as 2.5
    merged(knowing, few)
    assert asked[4:] == [(0, 3), (1, 20)]


def test_uniform_weights_count_clients_and_not_examples():
    values = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    replies = [
        Reply(reply.client, reply.params, weight) for reply, weight in zip(replies_of(values), (10, 30), strict=True)
    ]
    by_examples = merged(wrapped(rule="mean"), replies)["params"]["m.a"]
    uniform = merged(wrapped(rule="mean", weighting="uniform"), replies)["params"]["m.a"]
    torch.testing.assert_close(by_examples - BASE["m.a"], torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(uniform - BASE["m.a"], torch.tensor([0.5, 0.0]))


def test_no_reply_is_the_methods_own_refusal_and_a_state_of_another_kind_is_refused():
    with pytest.raises(RoundError, match="no replies to average"):
        merged(wrapped(), [])
    with pytest.raises(ConfigError, match="the server of method 'averaging' keeps no table of tensors"):
        wrapped(averaging(state=[1])).init(Rng(0))
