"""The codec is exact for everything that can be sent, and rejects tensors that are not allowed."""

from __future__ import annotations

import json
import math
import random
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Reply
from fedquilt.engine.flower import packing
from fedquilt.engine.flower.codec import order_content, read_order, read_reply, reply_content
from fedquilt.engine.flower.packing import DTYPES, DecodeError, announced, packed, unpacked

ORDER = Order({}, {}, 3, Rng(9, ("round", 3, "client", 2, "fit")))


def tensor(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bytes as a tensor, so that NaN, infinity and denormal numbers are among them."""
    size = math.prod(shape) * DTYPES[dtype].itemsize
    raw = bytearray(random.Random(seed).randbytes(size))
    if dtype == "bool":
        raw = bytearray(byte & 1 for byte in raw)
    flat = torch.tensor(list(raw), dtype=torch.uint8)
    return flat.view(DTYPES[dtype]).reshape(shape)


def raw(value: torch.Tensor) -> bytes:
    return value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(
        (left[k].dtype, left[k].shape, raw(left[k])) == (right[k].dtype, right[k].shape, raw(right[k])) for k in left
    )


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
TENSORS = st.builds(tensor, st.sampled_from([*DTYPES]), SHAPES, st.integers(0, 1000))
PARAMS = st.dictionaries(st.text(max_size=8), TENSORS, max_size=5)
NUMBERS = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def travelled(content: RecordDict) -> RecordDict:
    """The records after Flower's own serialisation and back."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    parts = {key: value.deflate() for key, value in get_all_nested_objects(content).items()}
    return inflate_object_from_contents(content.object_id, parts)


@settings(max_examples=150, deadline=None)
@given(PARAMS, st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(0, 2**80), st.data())
def test_an_order_comes_back_to_the_bit(params, wishes, seed, data):
    path = data.draw(st.lists(st.text(max_size=4) | st.integers(-5, 2**70), max_size=4))
    order = Order(params, wishes, 7, Rng(seed, tuple(path)))
    back, run = read_order(order_content(order, 4, "fit", "key"), 4, "fit")
    assert run == "key"
    assert (back.settings, back.round, back.rng) == (order.settings, 7, order.rng)
    assert same(back.params, params)


@settings(max_examples=150, deadline=None)
@given(PARAMS, st.dictionaries(st.text(max_size=5), NUMBERS, max_size=4), st.floats())
def test_a_reply_comes_back_to_the_bit(params, metrics, weight):
    sent = reply_content(Reply(2, params, weight, metrics), ORDER, "fit", "key")
    back = read_reply(sent, 2, ORDER, "fit", "key", announced(params))
    assert same(back.params, params)
    assert back.metrics == metrics
    assert back.weight == weight or math.isnan(weight)


def test_every_dtype_crosses_flowers_own_serialisation():
    params = {f"{dtype}{shape}": tensor(dtype, shape, 1) for dtype in DTYPES for shape in [(), (0,), (2, 3), (4, 0, 2)]}
    assert len(params) == 4 * len(DTYPES) >= 60
    head, back = unpacked(travelled(packed({"a": [1, 2.5, None]}, params)), "x")
    assert head == {"a": [1, 2.5, None]}
    assert same(back, params)


def test_views_arrive_as_plain_tensors_with_memory_of_their_own():
    base = torch.arange(24.0).reshape(4, 6)
    params = {"t": base.t(), "slice": base[1:3, ::2], "expanded": torch.ones(1).expand(5), "conj": (base * 1j).conj()}
    _, back = unpacked(packed({}, params), "x")
    assert all(torch.equal(back[name], params[name]) for name in params)
    assert all(value.is_contiguous() and value.data_ptr() % 16 == 0 for value in back.values())
    back["t"].zero_()
    assert base.sum() == sum(range(24))
    assert torch.equal(back["slice"], params["slice"])


def test_one_array_carries_all_tensors():
    content = packed({}, {str(k): torch.ones(3) for k in range(200)})
    (arrays,) = content.array_records.values()
    (array,) = arrays.values()
    assert len(array.data) == 200 * 12


def test_arithmetic_on_the_raw_bytes_is_refused():
    content = packed({}, {"a": torch.ones(3)})
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        content["tensors"]["bytes"].numpy()


@pytest.mark.parametrize("bad", [{1: "a"}, {"a": {2: 3}}, {"a": {1, 2}}, {"a": torch.ones(1)}])
def test_settings_that_would_come_back_as_something_else_are_not_sent(bad):
    with pytest.raises(TypeError, match="settings"):
        order_content(Order({}, bad), 0, "fit", "key")


def test_tensors_without_plain_values_are_not_sent():
    for odd in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match="tensor 'w' cannot be sent"):
            packed({}, {"w": odd})


# What must be refused ------------------------------------------------------------

PLAIN = {"w": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor([True, False]), "b": torch.ones(3).bfloat16()}


def content_of(index: str | dict, data: bytes = b"", **array) -> RecordDict:
    text = index if isinstance(index, str) else json.dumps(index)
    fields = {"dtype": "uint8", "shape": (len(data),), "stype": "fedquilt.bytes", "data": data, **array}
    return RecordDict({"index": ConfigRecord({"json": text}), "tensors": ArrayRecord({"bytes": Array(**fields)})})


def index_of(*table: list, bytes: int = 0, **head) -> dict:
    return {"format": 1, **head, "tensors": [*table], "bytes": bytes}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "without an index"),
        (content_of("{"), "not JSON"),
        (content_of("[" * 100_000), "not JSON"),
        (content_of("[]"), "not a JSON object"),
        (content_of(" " * (1 << 20) + "{}"), "an index of 1048578 characters"),
        (content_of("{}"), "format None, but this fedquilt reads format 1; use the same version"),
        (content_of(index_of(), b"x"), "1 bytes of tensors, but its index says 0 and lists 0"),
        (content_of(index_of(["w", "float32", [2]], bytes=8), b"1234"), "4 bytes of tensors, but its index says 8"),
        (content_of(index_of(["w", "float32", [-2]])), "impossible shape [-2]"),
        (content_of(index_of(["w", "float32", [True]])), "impossible shape [True]"),
        (content_of(index_of(["w", "float32", [1 << 60]], bytes=1 << 62)), "impossible shape"),
        (content_of(index_of(["w", "float32", [0, 1 << 40, 1 << 40]])), "impossible shape"),
        (content_of(index_of(["w", "float32", [1] * 65], bytes=4), b"1234"), "impossible shape"),
        (content_of(index_of(["w", "object", [1]])), "unknown dtype 'object'"),
        (content_of(index_of(["w", ["float32"], [1]])), "unknown dtype ['float32']"),
        (content_of(index_of(["w", "int8", [0]], ["w", "int8", [0]])), "'w' twice"),
        (content_of(index_of(["w", "int8"])), "not [name, dtype, shape]"),
        (content_of(index_of(["w", "bool", [2]], bytes=2), b"\x00\x02"), "bytes other than 0 and 1"),
        (content_of(index_of(), stype="numpy.ndarray"), "not the 0 plain bytes"),
        (content_of(index_of(), shape=(7,)), "not the 0 plain bytes"),
    ],
)
def test_a_malformed_message_is_refused_by_name(content, reason):
    with pytest.raises(DecodeError) as refused:
        unpacked(content, "client 5")
    assert reason in str(refused.value)
    assert str(refused.value).startswith("client 5")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"v": torch.ones(1)}, "client 2 sent tensor 'v', which nobody asked for"),
        ({"w": torch.ones(3, 2)}, "client 2 sent tensor 'w' as float32 (3, 2); it is float32 (2, 3)"),
        ({"w": torch.ones(2, 3).half()}, "client 2 sent tensor 'w' as float16 (2, 3); it is float32 (2, 3)"),
    ],
)
def test_a_reply_with_tensors_that_were_not_announced_is_refused(params, reason):
    content = reply_content(Reply(2, params, 1.0), ORDER, "fit", "key")
    with pytest.raises(DecodeError) as refused:
        read_reply(content, 2, ORDER, "fit", "key", announced(PLAIN))
    assert str(refused.value) == reason


def test_too_many_bytes_are_refused():
    content = reply_content(Reply(2, PLAIN, 1.0), ORDER, "fit", "key")
    with pytest.raises(DecodeError, match="client 2 sent 32 bytes of tensors; at most 31 are taken"):
        read_reply(content, 2, ORDER, "fit", "key", None, 31)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"client": 3}, "sent client 3 where 2 is expected"),
        ({"round": 2}, "sent round 2 where 3 is expected"),
        ({"run": "old"}, "sent run 'old' where 'key' is expected"),
        ({"exchange": "embed"}, "sent exchange 'embed' where 'fit' is expected"),
        ({"kind": "order"}, "sent kind 'order' where 'reply' is expected"),
        ({"weight": "8"}, "the weight '8', which is not a number"),
        ({"weight": True}, "the weight True, which is not a number"),
        ({"metrics": {"loss": "low"}}, "metrics that are not numbers"),
        ({"metrics": [1]}, "metrics that are not numbers"),
    ],
)
def test_a_reply_to_another_order_is_refused(change, reason):
    content = reply_content(Reply(2, PLAIN, 1.0, {"loss": 1}), ORDER, "fit", "key")
    content["index"]["json"] = json.dumps({**json.loads(content["index"]["json"]), **change})
    with pytest.raises(DecodeError, match="client 2 ") as refused:
        read_reply(content, 2, ORDER, "fit", "key")
    assert reason in str(refused.value)


@pytest.mark.parametrize("change", [{"round": -1}, {"round": 1.5}, {"seed": None}, {"path": [None]}, {"settings": []}])
def test_a_malformed_order_is_refused(change):
    content = order_content(ORDER, 2, "fit", "key")
    content["index"]["json"] = json.dumps({**json.loads(content["index"]["json"]), **change})
    with pytest.raises(DecodeError, match="the server sent"):
        read_order(content, 2, "fit")


# Fuzz ------------------------------------------------------------

ODD = [
    *(-1, 0, 1, 3, 2**31, 2**63, 10**30, 1.5, 1e400, True, None, "", "w", "float64", "int8", "object", "bool"),
    *([], {}, [2**40, 2**40], [0, 2**62], [-1], ["w", "float32", [2, 3]], {"w": 1}, [[[[]]]]),
]


def edited(chance: random.Random, value, depth: int = 0):
    """The JSON value with one place in it changed, doubled, dropped or replaced."""
    if not isinstance(value, dict | list) or not value or (depth and chance.random() < 0.2):
        return chance.choice(ODD)
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    key, kind = chance.choice(keys), chance.random()
    copy = dict(value) if isinstance(value, dict) else list(value)
    if kind < 0.15:
        del copy[key]
    elif kind < 0.3 and isinstance(copy, list):
        copy.insert(key, copy[key])
    else:
        copy[key] = edited(chance, copy[key], depth + 1)
    return copy


def mutated(chance: random.Random, good: RecordDict) -> RecordDict:
    text, data = good["index"]["json"], bytearray(good["tensors"]["bytes"].data)
    fields: dict = {}
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data = data[: chance.randrange(len(data) + 1)]
        elif kind == 2:
            data += chance.randbytes(chance.choice([1, 4, 4096]))
        elif kind == 3 and text:
            place = chance.randrange(len(text))
            text = text[:place] + chr(ord(text[place]) ^ (1 << chance.randrange(7))) + text[place + 1 :]
        elif kind == 4:
            text = text[: chance.randrange(len(text) + 1)]
        elif kind == 5:
            try:
                text = json.dumps(edited(chance, json.loads(text)))
            except ValueError:
                text += "]"
        else:
            fields |= chance.choice([{"stype": "numpy.ndarray"}, {"dtype": "float64"}, {"shape": (2**50,)}])
    return content_of(text, bytes(data), **fields)


def test_two_thousand_mutated_replies_crash_nothing_and_allocate_no_more_than_came(monkeypatch):
    chance, made = random.Random(20), packing._tensor
    allocated = 0

    def counted(data, start, size, *rest):
        nonlocal allocated
        allocated += size
        return made(data, start, size, *rest)

    monkeypatch.setattr(packing, "_tensor", counted)
    good = reply_content(Reply(2, PLAIN, 6.0, {"loss": 0.5, "steps": 3}), ORDER, "fit", "key")
    allowed = announced(PLAIN)
    errors, taken = [], 0
    tracemalloc.start()
    try:
        for number in range(2000):
            content, spec = mutated(chance, good), allowed if number % 2 else None
            before, allocated = tracemalloc.get_traced_memory()[0], 0
            tracemalloc.reset_peak()
            try:
                reply = read_reply(content, 2, ORDER, "fit", "key", spec, 4096)
            except DecodeError as error:
                errors.append(str(error))
            else:
                assert reply.client == 2
                assert spec is None or announced(reply.params).items() <= spec.items()
                assert all(value.dtype in DTYPES.values() for value in reply.params.values())
                taken += 1
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 200_000, "python objects of an index of at most a few thousand characters"
            assert allocated <= 4096
    finally:
        tracemalloc.stop()
    assert len(errors) > 1200
    assert all(text.startswith("client 2") and len(text) < 400 for text in errors)
    assert taken > 100


def test_two_thousand_mutated_orders_crash_nothing():
    chance = random.Random(21)
    good = order_content(Order(PLAIN, {"layers": [0, 1], "score": False}, 3, ORDER.rng), 2, "fit", "key")
    outcomes = set()
    for _ in range(2000):
        try:
            order, _ = read_order(mutated(chance, good), 2, "fit", 4096)
            assert sum(value.numel() * value.element_size() for value in order.params.values()) <= 4096
            outcomes.add("taken")
        except DecodeError:
            outcomes.add("refused")
    assert outcomes == {"taken", "refused"}
