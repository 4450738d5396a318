"""Trees of tensors come back bit-identical; other values are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import same

from fedquilt.record import tree_from_bytes, tree_to_bytes
from fedquilt.record.tree_bytes import tree_pieces

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.bool,
]


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        content = bytes(byte & 1 for byte in content)
    flat = torch.tensor(list(content), dtype=torch.uint8).view(dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors()
keys = st.text(max_size=5) | st.sampled_from(["tensor", "dict", "float", "bytes", "a/b"])
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t, max_size=3), max_leaves=8)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_a_tree_comes_back_in_the_same_bits_and_types(tree):
    content = tree_to_bytes(tree)
    assert same(tree_from_bytes(content), tree)
    assert tree_to_bytes(tree) == content
    assert b"".join(tree_pieces(tree)) == content


def test_views_shared_memory_and_gradients_are_no_obstacle():
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "whole": base,
        "same": base,
        "column": base[:, 1],
        "turned": base.T,
        "wide": torch.tensor(2.0).expand(3, 2),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "number": torch.tensor(3, dtype=torch.int8),
    }
    back = tree_from_bytes(tree_to_bytes(tree))
    assert back["wide"].shape == (3, 2)
    assert not back["trained"].requires_grad
    for name, tensor in tree.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype
    assert base.is_contiguous()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1, (2, 3)]}, r"tree\['a'\]\[1\] is a tuple, but a state or memory holds only .*; use a list"),
        ({"a": {1: 2}}, r"tree\['a'\]: the key 1 is a int; keys are strings, so write it as '1'"),
        ({"a": object()}, r"tree\['a'\] is a object, but a state or memory holds only dicts, lists, tensors"),
        ([torch.eye(2).to_sparse()], r"tree\[0\] is a tensor without plain dense values"),
        ([torch.empty(2, device="meta")], r"tree\[0\] is a tensor without plain dense values"),
    ],
)
def test_what_is_not_a_tree_is_refused_by_its_place(tree, message):
    with pytest.raises(TypeError, match=message):
        tree_to_bytes(tree)
