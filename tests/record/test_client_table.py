from __future__ import annotations

import json
from typing import Any

import pytest

from fedquilt.record.client_table import MANY, ClientTable, as_read, as_stored, clients_of


def row(id: int) -> dict[str, Any]:
    return {
        "id": id,
        "architecture": "vit-3x16",
        "rank": None,
        "examples": id % 3,
        "name": f"site {id}",
        "train": list(range(id, id + id % 3)),
        "validation": [],
        "labels": {"cat": 2, "dog": id} if id % 2 else {"dog": 1},
    }


@pytest.mark.parametrize("count", [MANY, MANY + 1])
def test_many_clients_are_kept_as_columns_and_read_as_the_same_objects(count: int) -> None:
    rows = [row(id) for id in range(count)]
    kept = clients_of(iter(rows), count)
    assert list(kept) == rows
    assert isinstance(kept, ClientTable) == (count > MANY)
    stored = json.loads(json.dumps(as_stored({"digest": "d", "clients": kept})))
    read = as_read(stored)
    assert read["digest"] == "d"
    assert list(read["clients"]) == rows
    assert read["clients"][-1] == rows[-1]
    assert read["clients"][5:7] == rows[5:7]


def test_columns_are_those_of_the_documentation() -> None:
    rows = [
        {"id": 4, "task": "t", "name": "a", "train": [5, 8], "labels": {"cat": 5, "dog": 8}},
        {"id": 7, "task": "t", "name": "b", "train": [3], "labels": {"dog": 3}},
    ]
    assert ClientTable.of(rows).as_json() == {
        "count": 2,
        "columns": {
            "id": {"numbers": "4 7"},
            "task": {"all": "t"},
            "name": {"each": ["a", "b"]},
            "train": {"sizes": "2 1", "numbers": "5 8 3"},
            "labels": {"names": ["cat", "dog"], "sizes": "2 1", "keys": "0 1 1", "numbers": "5 8 3"},
        },
    }


def test_clients_of_a_natural_partition_have_names_beside_others_that_have_none() -> None:
    rows = [{"id": 0, "rank": None}, {"id": 1, "rank": None, "name": "a"}, {"id": 2, "rank": None}]
    table = ClientTable.of(rows)
    assert list(table) == rows
    stored = json.loads(json.dumps(table.as_json()))
    assert stored["columns"]["name"] == {"each": [None, "a", None], "absent": "0 2"}
    assert list(ClientTable.from_json(stored)) == rows


@pytest.mark.parametrize("rows", [[{"train": [1]}, {}], [{"id": 0}, {"id": 1, "labels": {"cat": 2}}]])
def test_no_client_lacks_its_rows(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="has"):
        ClientTable.of(rows)


def test_a_record_with_a_list_of_clients_is_read_as_it_is() -> None:
    assert as_read({"clients": [row(1)]}) == {"clients": [row(1)]}
    assert as_read({}) == {}
