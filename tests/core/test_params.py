"""Laws of the arithmetic on name -> tensor maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.params import add, moved, narrow, not_finite, num_bytes, scale, select, squared_norm, sub, without

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAMES = ["blocks.1.lora_A", "blocks.10.lora_A", "head.weight", "", "ü"]


@st.composite
def trees(draw, num=1, dtype=None):
    """``num`` maps with the same names, shapes and types; values are small whole numbers, so sums are exact."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    shapes = [tuple(draw(st.lists(st.integers(0, 3), max_size=3))) for _ in names]
    types = [dtype or draw(st.sampled_from(DTYPES)) for _ in names]
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.randint(-8, 9, shape, generator=generator).to(kind)
            for name, shape, kind in zip(names, shapes, types, strict=True)
        }
        for _ in range(num)
    ]


def same(left, right):
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def copied(params):
    return {name: tensor.clone() for name, tensor in params.items()}


@given(trees(num=3))
@settings(max_examples=60)
def test_add_and_sub_obey_the_laws_of_a_group(three):
    a, b, c = three
    zero = scale(a, 0.0)
    assert same(add(a, b), add(b, a))
    assert same(add(add(a, b), c), add(a, add(b, c)))
    assert same(add(a, zero), a)
    assert same(sub(add(a, b), b), a)
    assert same(sub(a, b), add(a, scale(b, -1.0)))
    assert squared_norm(sub(a, a)) == 0.0


@given(trees(num=2), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 4.0]))
@settings(max_examples=60)
def test_scale_is_linear_and_keeps_shape_and_type(two, factor):
    a, b = two
    assert same(scale(add(a, b), factor), add(scale(a, factor), scale(b, factor)))
    assert same(scale(a, 1.0), a)
    assert squared_norm(scale(a, factor)) == factor**2 * squared_norm(a)
    assert {n: (t.shape, t.dtype) for n, t in scale(a, factor).items()} == {n: (t.shape, t.dtype) for n, t in a.items()}


@given(trees(num=2))
@settings(max_examples=40)
def test_nothing_changes_its_arguments_or_hands_out_their_memory(two):
    a, b = two
    kept_a, kept_b = copied(a), copied(b)
    results = [add(a, b), sub(a, b), scale(a, 1.0)]
    squared_norm(a), num_bytes(a), not_finite(a)
    for result in results:
        for tensor in result.values():
            tensor.zero_()
    assert same(a, kept_a)
    assert same(b, kept_b)


@given(trees(), st.lists(st.sampled_from([*NAMES, "absent"])))
@settings(max_examples=40)
def test_select_and_without_part_the_map_and_keep_its_order(one, names):
    (a,) = one
    chosen, rest = select(a, names), without(a, names)
    assert chosen.keys() | rest.keys() == a.keys()
    assert not chosen.keys() & rest.keys()
    assert chosen.keys() <= set(names)
    assert [name for name in a if name in chosen] == list(chosen)
    assert [name for name in a if name in rest] == list(rest)
    assert same({name: {**chosen, **rest}[name] for name in a}, a)


def test_select_goes_by_whole_names():
    a = {"blocks.1.lora_A": torch.ones(1), "blocks.10.lora_A": torch.ones(1)}
    assert list(select(a, ["blocks.1.lora_A"])) == ["blocks.1.lora_A"]
    assert list(without(a, iter(["blocks.1.lora_A"]))) == ["blocks.10.lora_A"]


@pytest.mark.parametrize("operation", [add, sub])
def test_unlike_names_are_refused_by_name(operation):
    left, right = {"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)}
    with pytest.raises(ValueError, match=r"^the two sides hold different tensors: \['b', 'c'\]$"):
        operation(left, right)
    with pytest.raises(ValueError, match=r"different tensors: \['a', 'b'\]$"):
        operation(left, {})


def test_a_long_list_of_unlike_names_is_cut():
    many = {f"t{i}": torch.ones(1) for i in range(7)}
    with pytest.raises(ValueError, match=r"\['t0', 't1', 't2', 't3', 't4'\] and more$"):
        add(many, {})


@pytest.mark.parametrize("operation", [add, sub])
def test_unlike_ranks_are_refused_and_never_broadcast(operation):
    left, right = {"a": torch.ones(8, 4)}, {"a": torch.ones(1, 4)}
    with pytest.raises(ValueError, match=r"tensor 'a' is \(8, 4\) on the left and \(1, 4\) on the right"):
        operation(left, right)


def test_squared_norm_by_hand_and_in_double_precision():
    assert squared_norm({}) == 0.0
    assert squared_norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor(2.0)}) == 29.0
    assert squared_norm({"a": torch.full((2,), 300.0, dtype=torch.float16)}) == 180000.0  # above the float16 range
    tiny = {"a": torch.ones(1), "b": torch.full((10_000,), 1e-5)}
    assert squared_norm(tiny) == pytest.approx(1 + 1e-6, abs=1e-12)
    assert isinstance(squared_norm({"a": torch.ones(2, requires_grad=True)}), float)


def test_num_bytes_counts_raw_tensors():
    params = {
        "a": torch.zeros(2, 3),  # 24
        "b": torch.zeros(5, dtype=torch.bfloat16),  # 10
        "c": torch.zeros((), dtype=torch.float64),  # 8
        "d": torch.zeros(0, 4),  # 0
        "e": torch.zeros(3, dtype=torch.bool),  # 3
        "f": torch.zeros(100)[::50],  # a view counts what it shows: 8
    }
    assert num_bytes(params) == 53
    assert num_bytes({}) == 0


def test_not_finite_names_the_first_broken_tensor():
    fine = {"a": torch.ones(3), "b": torch.zeros(0), "c": torch.tensor([2**62])}
    assert not_finite({}) is None
    assert not_finite(fine) is None
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not_finite({**fine, "x": torch.tensor([1.0, value]), "y": torch.tensor(value)}) == "x"
        assert not_finite({"x": torch.tensor([value], dtype=torch.bfloat16)}) == "x"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_anywhere_is_found_and_the_largest_finite_ones_pass(dtype, bad):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)  # their sum is no finite number
    assert not_finite({"a": torch.zeros(0, dtype=dtype), "b": largest, "c": -largest}) is None
    for place in range(12):
        for rest in (torch.zeros(12, dtype=dtype), largest.flatten()):
            tensor = rest.clone()
            tensor[place] = bad
            assert not_finite({"a": torch.ones(2, dtype=dtype), "b": tensor.view(3, 4)}) == "b"
    both = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
    assert not_finite({"b": both}) == "b"


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_moves_the_bits_of_the_base_stay_even_those_of_minus_zero(dtype):
    base, step = torch.tensor([-0.0, 0.0, 1.5, -0.0]).to(dtype), torch.tensor([0.0, -0.0, 1e-30, 2.0]).double()
    result = moved(base, step)
    assert result.dtype == dtype
    assert result.tolist() == [0.0, 0.0, 1.5, 2.0]
    assert torch.signbit(result).tolist() == [True, False, False, False]
    assert torch.signbit(narrow(torch.tensor([0.0, -0.0]).double(), base[:2])).tolist() == [True, False]
    assert moved(base, step, torch.float64).dtype == torch.float64


def test_a_step_is_summed_in_the_widest_type_before_it_is_rounded():
    base = torch.tensor([1.0], dtype=torch.bfloat16)
    assert moved(base, torch.tensor([2.0**-9 + 2.0**-20]).double()).tolist() == [1.0]  # half a step of bfloat16 is 2^-8
    assert moved(base, torch.tensor([2.0**-8 + 2.0**-20]).double()).tolist() == [1.0078125]
    assert torch.isnan(moved(base, torch.tensor([float("nan")]).double())).all()
