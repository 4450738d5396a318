"""Which tensors are the two factors of which module, and the same at another rank."""

import torch

from fedquilt.core.factors import at_rank, cut, factors, modules_of, named, same_but_rank
from fedquilt.core.types import Layout

PARAMS = {
    "x.lora_A": torch.arange(6.0).reshape(3, 2),
    "x.lora_B": torch.arange(12.0).reshape(4, 3),
    "y.lora_A": torch.ones(1, 2),
    "y.lora_B": torch.ones(4, 1),
    "head.weight": torch.ones(5, 4),
}


def test_pairs_by_module_and_back():
    pairs = factors(PARAMS)
    assert list(pairs) == ["x", "y"]
    assert pairs["x"].A is PARAMS["x.lora_A"]
    again = named(pairs)
    assert again.keys() == PARAMS.keys() - {"head.weight"}
    assert all(again[name] is PARAMS[name] for name in again)
    assert factors({"x.lora_A": torch.ones(1, 1)}) == {}
    assert modules_of(PARAMS) == ("x", "y")


def test_a_cut_is_the_first_rows_of_a_and_columns_of_b_as_far_as_there_are():
    two = cut(PARAMS, 2)
    assert two["x.lora_A"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert two["x.lora_B"].tolist() == [[0.0, 1.0], [3.0, 4.0], [6.0, 7.0], [9.0, 10.0]]
    assert two["y.lora_A"].shape == (1, 2)  # its own rank is lower
    assert two["head.weight"] is PARAMS["head.weight"]
    assert cut(PARAMS, None) == PARAMS


def test_the_layout_of_a_rank_has_the_shapes_of_the_cut():
    where = Layout("toy", 1, dict.fromkeys(PARAMS, 0), {name: tuple(t.shape) for name, t in PARAMS.items()})
    assert at_rank(where, None) is where
    for rank in (1, 2, 9):
        assert at_rank(where, rank).shapes == {name: tuple(t.shape) for name, t in cut(PARAMS, rank).items()}


def test_shapes_that_differ_in_the_rank_alone():
    assert same_but_rank("x.lora_A", (1, 2), (3, 2))
    assert same_but_rank("x.lora_B", (4, 1), (4, 3))
    assert not same_but_rank("x.lora_A", (3, 1), (3, 2))
    assert not same_but_rank("x.lora_A", (0, 2), (3, 2))
    assert not same_but_rank("head.weight", (4, 4), (5, 4))
