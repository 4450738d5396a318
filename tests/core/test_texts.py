"""Texts as tensors and back: exact, bounded, one form only, the same over every wire."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.checks import reply_check
from fedquilt.core.errors import WireError
from fedquilt.core.method import Exchange, Wire
from fedquilt.core.texts import pack_texts, text_form, text_ranges, unpack_texts
from fedquilt.core.types import Budget, Order, Profile, Reply
from fedquilt.core.wire import lowered, packed, raised, unpacked

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=5)
ODD = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
"""No character; a long form of a zero; a surrogate; beyond the last character; half a character."""


@given(TEXTS)
def test_texts_come_back_as_they_were(texts):
    longest = max((len(text.encode()) for text in texts), default=0)
    sent = pack_texts(texts, longest)
    assert unpack_texts(sent) == texts
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in sent.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in text_form(len(texts), longest).items()
    }


@given(TEXTS, st.integers(0, 9))
def test_a_long_text_loses_its_end_and_no_character_is_cut(texts, most):
    came = unpack_texts(pack_texts(texts, most, "paths"), "paths")
    for text, short in zip(texts, came, strict=True):
        assert text.startswith(short)
        rest = text[len(short) :]
        assert not rest or len((short + rest[0]).encode()) > most


def test_a_lone_surrogate_becomes_a_question_mark():
    assert unpack_texts(pack_texts(["a\ud800b"], 8)) == ["a?b"]


@given(st.binary(max_size=6), st.integers(-2, 8), st.integers(0, 8))
def test_whatever_bytes_come_are_one_text_or_refused(content, length, width):
    rows = torch.zeros(1, width, dtype=torch.uint8)
    own = content[:width]
    rows[0, : len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    came = {"texts.bytes": rows, "texts.lengths": torch.tensor([length], dtype=torch.int32)}
    try:
        (text,) = unpack_texts(came)
    except WireError:
        return
    again = pack_texts([text], width)
    assert all(torch.equal(came[name], again[name]) for name in came)


@pytest.mark.parametrize("content", ODD)
def test_what_is_not_utf8_is_refused(content):
    rows = torch.tensor([list(content)], dtype=torch.uint8)
    lengths = torch.tensor([len(content)], dtype=torch.int32)
    with pytest.raises(WireError, match=r"text 'texts' 0 is not UTF-8 at byte"):
        unpack_texts({"texts.bytes": rows, "texts.lengths": lengths})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts.bytes": torch.zeros(2, 4)}, "uint8"),
        ({"texts.bytes": torch.zeros(8, dtype=torch.uint8)}, "uint8"),
        ({"texts.lengths": torch.zeros(2, dtype=torch.int64)}, "int32"),
        ({"texts.lengths": torch.zeros(3, dtype=torch.int32)}, r"int32 \(2,\)"),
        ({"texts.lengths": torch.tensor([5, 0], dtype=torch.int32)}, "length 5; it must be from 0 to 4"),
        ({"texts.lengths": torch.tensor([-1, 0], dtype=torch.int32)}, "length -1"),
        ({"texts.lengths": torch.tensor([1, 0], dtype=torch.int32)}, "bytes behind its end"),
        ({"texts.bytes": None}, "'texts.bytes' is missing"),
    ],
)
def test_a_wrong_form_is_refused(change, said):
    with pytest.raises(WireError, match=said):
        unpack_texts({**pack_texts(["ab", ""], 4), **change})


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_fewer_bits_on_the_wire_leave_texts_as_they_are(dtype):
    wire = Wire(dtype)
    order = Order({**pack_texts(["ask"], 8, "questions"), "weight": torch.rand(3)})
    came = raised(lowered({0: order}, wire)[0], wire)
    assert unpack_texts(came.params, "questions") == ["ask"]
    for name in ("questions", "answers"):  # also where the order held texts of the same name and shape
        reply = Reply(0, pack_texts(["tell \u00fc"], 8, name), 1.0)
        form, owed = packed(came, reply, {}, wire)
        assert not owed
        assert unpack_texts(unpacked(order, form, wire).params, name) == ["tell \u00fc"]


def test_the_check_of_replies_takes_texts_and_nothing_else_in_their_place():
    exchange = Exchange(
        "answer",
        lambda state, turn: {},
        lambda client, order, memory: (Reply(0, {}, 1.0), memory),
        lambda state, replies: state,
        lambda order: text_form(2, 8),
        ranges=lambda order: text_ranges(8),
    )
    check = reply_check([Profile(0, 5, "toy", Budget(1), "causal-lm")])
    good = pack_texts(["a", "\u00fc" * 4], 8)
    assert check(exchange, Order({}), Reply(0, good, 1.0)) is None
    for change, said in (
        ({"texts.bytes": torch.zeros(2, 9, dtype=torch.uint8)}, "has shape (2, 9), not (2, 8)"),
        ({"texts.bytes": torch.zeros(2, 8)}, "is torch.float32, not torch.uint8"),
        ({"texts.lengths": torch.tensor([9, 0], dtype=torch.int32)}, "holds 9; it must be from 0 to 8"),
        ({"more": torch.zeros(1)}, "'more' was not asked for"),
    ):
        assert said in str(check(exchange, Order({}), Reply(0, {**good, **change}, 1.0)))
