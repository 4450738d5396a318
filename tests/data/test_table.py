from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedquilt.data import table
from fedquilt.data.table import Columns, Table, concatenated, digest, digest_of_many, num_rows, take


def test_rows_picks_every_column_in_the_order_asked() -> None:
    table = Table(
        "text",
        ["a", "b", "c"],
        torch.tensor([0, 1, 0]),
        ("no", "yes"),
        pairs=["p", "q", "r"],
        targets=["x", "y", "z"],
        groups=torch.tensor([7, 8, 9]),
        is_train=torch.tensor([True, False, True]),
    )
    picked = table.rows(np.array([2, 0]))
    assert (picked.inputs, picked.pairs, picked.targets) == (["c", "a"], ["r", "p"], ["z", "x"])
    assert picked.labels is not None
    assert picked.labels.tolist() == [0, 0]
    assert picked.groups is not None
    assert picked.groups.tolist() == [9, 7]
    assert picked.is_train is not None
    assert picked.is_train.tolist() == [True, True]
    assert picked.classes == ("no", "yes")
    assert len(picked) == 2
    assert len(table) == 3


@pytest.mark.parametrize("indices", [[1], np.array([1]), torch.tensor([1]), (1,)])
def test_rows_takes_any_kind_of_index(indices: object) -> None:
    table = Table("image", torch.arange(8, dtype=torch.uint8).reshape(2, 2, 2), None, ())
    picked = table.rows(indices)  # type: ignore[arg-type]
    assert isinstance(picked.inputs, torch.Tensor)
    assert picked.inputs.tolist() == [[[4, 5], [6, 7]]]
    assert picked.labels is None


def test_rows_of_nothing_is_empty() -> None:
    table = Table("image", torch.zeros(2, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]), ("0", "1"))
    assert len(table.rows([])) == 0


def test_take_picks_rows_and_leaves_its_input_alone() -> None:
    columns = {"ids": torch.arange(6).reshape(3, 2), "labels": torch.tensor([5, 6, 7])}
    picked = take(columns, np.array([2, 2, 0]))
    assert picked["ids"].tolist() == [[4, 5], [4, 5], [0, 1]]
    assert picked["labels"].tolist() == [7, 7, 5]
    assert num_rows(picked) == 3
    assert num_rows(columns) == 3


def test_num_rows_refuses_unequal_columns() -> None:
    assert num_rows({}) == 0
    with pytest.raises(ValueError, match="one length"):
        num_rows({"a": torch.zeros(2), "b": torch.zeros(3)})


@pytest.mark.parametrize("digest", [digest, digest_of_many])
def test_a_digest_is_of_every_value_name_type_and_shape(digest: Callable[[list[Columns]], str]) -> None:
    rows = {"a": torch.arange(6).reshape(2, 3), "b": torch.zeros(2, dtype=torch.uint8)}
    other = {"a": rows["a"].clone(), "b": rows["b"]}
    assert digest([rows]) == digest([dict(reversed(other.items()))])
    other["a"][1, 2] += 1
    variants = [other, {"a": rows["a"]}, {**rows, "a": rows["a"].reshape(3, 2)}, {**rows, "a": rows["a"].int()}]
    assert len({digest([each]) for each in (rows, *variants)}) == 5
    assert digest([rows, {"c": torch.empty(0, 3)}]) != digest([rows])


def test_rows_that_many_have_in_common_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    content = table._content
    monkeypatch.setattr(table, "_content", lambda column: (read.append(column), content(column))[1])
    common = {"a": torch.arange(6)}
    made = digest_of_many([{"a": torch.zeros(2)}, common, {"a": torch.ones(2)}, common, common])
    assert len(read) == 3
    copies = [{"a": common["a"].clone()} for _ in range(3)]
    assert made == digest_of_many([{"a": torch.zeros(2)}, copies[0], {"a": torch.ones(2)}, *copies[1:]])
    # a tensor in the place of one that is gone is another one
    passing = ({"a": torch.full((2,), float(number))} for number in range(50))
    assert digest_of_many(passing) == digest_of_many([{"a": torch.full((2,), float(n))} for n in range(50)])


def test_tables_of_different_classes_are_joined_by_name() -> None:
    one = Table("text", ["a", "b"], torch.tensor([0, 1]), ("add", "carry"))
    other = Table("text", ["c", "d", "e"], torch.tensor([1, 0, 2]), ("carry", "double", "halve"))
    both = concatenated([one, other])
    assert both.classes == ("add", "carry", "double", "halve")
    assert both.labels is not None
    assert [both.classes[label] for label in both.labels.tolist()] == ["add", "carry", "double", "carry", "halve"]
    assert concatenated([one, one]).classes == one.classes
