"""Named random streams: the same wherever they are made, never disturbing each other or the global generators."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.rng import Rng

NAMES = st.one_of(st.text(max_size=6), st.integers(-(2**40), 2**40))
PATHS = st.lists(NAMES, max_size=4).map(tuple)


def draws(rng):
    return rng.torch().initial_seed(), rng.numpy().integers(2**40), rng.integer()


def test_integer_keeps_the_values_it_had_when_it_was_written():
    # these numbers are part of the file format: a change here breaks the replay of every earlier run
    assert Rng(0).integer() == 8157554981642858572
    assert Rng(1).child("round", 3, "client", 7).integer() == 711714289730333519
    assert Rng(-5).child("init").integer(bits=32) == 2521020177


@given(st.integers(-(2**70), 2**70), PATHS, st.integers(1, 64))
@settings(max_examples=60)
def test_integer_lies_in_its_range_and_does_not_move(seed, path, bits):
    value = Rng(seed, path).integer(bits)
    assert 0 <= value < 2**bits
    assert value == Rng(seed).child(*path).integer(bits)


@given(st.integers(0, 9), PATHS, PATHS)
@settings(max_examples=200)
def test_unlike_paths_are_unlike_streams(seed, left, right):
    assert (Rng(seed, left).integer() == Rng(seed, right).integer()) == (left == right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1,), ("1",)),
        ((1, 2), (12,)),
        (("a", "b"), ("ab",)),
        (("a", "b"), ("b", "a")),
        (("a,b",), ("a", "b")),
        (("a', 'b",), ("a", "b")),
        (("",), ()),
        ((-1,), ("-1",)),
    ],
)
def test_paths_that_look_alike_are_unlike_streams(left, right):
    assert Rng(0, left).integer() != Rng(0, right).integer()


def test_no_two_of_many_clients_and_rounds_share_a_stream():
    root = Rng(3)
    seeds = {root.child("round", t, "client", c).integer() for t in range(60) for c in range(60)}
    assert len(seeds) == 3600


def test_children_do_not_depend_on_the_order_in_which_they_are_made_or_drawn():
    root = Rng(7)
    forward = {client: draws(root.child("client", client)) for client in range(5)}
    backward = {client: draws(root.child("client", client)) for client in reversed(range(5))}
    assert forward == backward


def test_drawing_from_one_stream_does_not_move_another():
    root = Rng(7)
    alone = torch.rand(8, generator=root.child("fit").torch())
    generator = root.child("warm-up").torch()
    torch.rand(1000, generator=generator)
    root.child("warm-up").numpy().random(1000)
    with root.child("dropout").scope():
        torch.rand(1000)
    assert torch.equal(alone, torch.rand(8, generator=root.child("fit").torch()))


def test_a_child_of_a_child_is_the_child_of_the_joined_path():
    assert Rng(2).child("round", 1).child("client", 4) == Rng(2).child("round", 1, "client", 4)
    assert Rng(2).child() == Rng(2)


def test_numpy_and_torch_integers_and_json_lists_name_the_same_stream_as_plain_ones():
    plain = Rng(5).child("client", 3)
    assert Rng(np.int64(5)).child("client", np.int64(3)) == plain
    assert Rng(5).child("client", torch.tensor(3)).integer() == plain.integer()
    assert Rng(5, ["client", 3]) == plain
    assert Rng(5).child(np.str_("client"), 3).integer() == plain.integer()
    assert all(type(name) in (str, int) for name in Rng(5).child(np.str_("client"), np.int32(3), True).path)


@pytest.mark.parametrize("name", [1.5, None, ("a",)])
def test_a_name_that_is_neither_text_nor_integer_is_refused(name):
    with pytest.raises(TypeError, match="integer"):
        Rng(0).child(name)


def test_a_stream_starts_afresh_at_every_call():
    rng = Rng(4).child("rows")
    assert torch.equal(torch.rand(5, generator=rng.torch()), torch.rand(5, generator=rng.torch()))
    assert np.array_equal(rng.numpy().random(5), rng.numpy().random(5))


def test_uniform_draws_across_children_look_uniform_and_uncorrelated():
    values = np.array([Rng(0).child("client", c).numpy().random(2) for c in range(2000)])
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.08


def test_making_and_drawing_streams_leaves_every_global_generator_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    rng = Rng(9).child("x")
    torch.rand(3, generator=rng.torch())
    rng.numpy().random(3)
    rng.integer()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_scope_replays_and_restores_the_global_generator():
    torch.manual_seed(123)
    expected_outside = torch.rand(6)
    torch.manual_seed(123)
    first = torch.rand(3)
    with Rng(1).child("dropout").scope():
        inside = torch.nn.functional.dropout(torch.ones(64))
    second = torch.rand(3)
    assert torch.equal(torch.cat([first, second]), expected_outside)
    torch.manual_seed(999)
    with Rng(1).child("dropout").scope():
        assert torch.equal(inside, torch.nn.functional.dropout(torch.ones(64)))
    with Rng(1).child("other").scope():
        assert not torch.equal(inside, torch.nn.functional.dropout(torch.ones(64)))


def test_scope_restores_after_an_exception_and_lets_it_through():
    def draw_and_fail():
        with Rng(1).scope():
            torch.rand(10)
            raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert torch.equal(before, torch.get_rng_state())


def test_a_scope_inside_a_scope_does_not_move_the_outer_one():
    with Rng(1).child("outer").scope():
        expected = torch.rand(4)
    with Rng(1).child("outer").scope():
        first = torch.rand(2)
        with Rng(1).child("inner").scope():
            torch.rand(50)
        assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scope_covers_the_generator_of_the_gpu():
    before = torch.cuda.get_rng_state()
    with Rng(1).scope():
        inside = torch.rand(16, device="cuda")
    assert torch.equal(before, torch.cuda.get_rng_state())
    torch.cuda.manual_seed(77)
    with Rng(1).scope():
        assert torch.equal(inside, torch.rand(16, device="cuda"))


def test_a_sealed_stream_is_a_streams_own_and_tells_nothing_of_where_it_comes_from():
    sealed = Rng(4, ("round", 3)).sealed()
    assert sealed == Rng(4).child("round", 3).sealed()
    assert sealed.path == ()
    streams = [Rng(seed, path) for seed in (4, 5) for path in ((), ("round",), ("round", 3), ("sealed",))]
    assert len({stream.sealed().seed for stream in streams}) == len(streams)
    assert all(stream.sealed().seed > 2**200 for stream in streams)  # not to be guessed
    assert {stream.integer() for stream in streams}.isdisjoint({stream.sealed().integer() for stream in streams})
