"""Columns of numbers and categories are read from every kind of file, and what cannot be used is named with its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedquilt.core.errors import DataError
from fedquilt.data.cells import Cells, Wanted, concatenated_cells
from fedquilt.data.loaders import load_table
from fedquilt.data.table import concatenated

ROWS = """id,age,sex,code,smokes,label
1,30,f,7,true,ill
2,,m,8,false,well
3,41.5,?,7,true,ill
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path / "rows.csv"


def read(source: object, *columns: str, **wanted: tuple[str, ...]) -> Cells:
    cells = load_table(str(source), cells=Wanted(columns or None, **wanted)).inputs
    assert isinstance(cells, Cells)
    return cells


def test_columns_are_what_they_look_like_and_gaps_are_missing_values(file: Path) -> None:
    table = load_table(str(file), cells=Wanted())
    cells = table.inputs
    assert isinstance(cells, Cells)
    assert (table.kind, table.classes, len(table)) == ("table", ("ill", "well"), 3)
    assert cells.names == ("age", "sex", "code", "smokes")  # neither the label nor the row's number
    assert cells.categorical == ("sex", "smokes")
    np.testing.assert_array_equal(cells.columns["age"], [30, np.nan, 41.5])
    assert cells.columns["sex"].tolist() == ["f", "m", None]


def test_columns_can_be_chosen_and_numbers_be_categories(file: Path) -> None:
    cells = read(file, "code", "id", categorical=("code",))
    assert cells.names == ("code", "id")
    assert cells.columns["code"].tolist() == ["7", "8", "7"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "npz", "tsv", "saved"])
def test_every_file_format_gives_the_same_columns(file: Path, kind: str) -> None:
    import datasets

    columns = {"age": [30.0, None, 41.5], "sex": ["f", "m", None], "label": ["ill", "well", "ill"]}
    path = file.with_suffix(f".{kind}")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    match kind:
        case "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        case "json":
            path.write_text(json.dumps(rows))
        case "parquet":
            datasets.Dataset.from_dict(columns).to_parquet(path)
        case "saved":
            datasets.Dataset.from_dict(columns).save_to_disk(path)
        case "tsv":
            path.write_text("age\tsex\tlabel\n30\tf\till\n\tm\twell\n41.5\t\till\n")
        case "npz":
            np.savez(path, age=[30, np.nan, 41.5], sex=["f", "m", ""], label=["ill", "well", "ill"])
    cells = read(path)
    np.testing.assert_array_equal(cells.columns["age"], [30, np.nan, 41.5])
    assert cells.columns["sex"].tolist() == ["f", "m", None]


@pytest.mark.parametrize(
    ("source", "rows", "columns"),
    [("breast_cancer", 569, 30), ("wine", 178, 13), ("iris", 150, 4), ("digits", 1797, 64)],
)
def test_bundled_tables(source: str, rows: int, columns: int) -> None:
    cells = read(f"sklearn:{source}")
    assert (len(cells), len(cells.names), cells.categorical) == (rows, columns, ())


def test_bundled_tables_have_the_names_of_their_classes() -> None:
    table = load_table("sklearn:breast_cancer", cells=Wanted(("mean radius",)))
    assert table.classes == ("malignant", "benign")
    assert table.labels is not None
    assert table.labels.bincount().tolist() == [212, 357]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Wanted(("ages",)),
            r"columns = \['ages'\]: the column 'ages' is not there \(did you mean 'age'\?\); .* are: id, age, sex",
        ),
        (Wanted(("label",)), "the column 'label' is read as labels"),
        (Wanted(categorical=("sec",)), r"data\.categorical = \['sec'\]: the column 'sec' is not there"),
        (Wanted(numbers=("sex",)), r"'sex' holds numbers, and here none \('f'\): 2 rows: .*rows\.csv, lines 2 and 3"),
    ],
)
def test_columns_that_are_not_there_are_named_with_those_that_are(file: Path, wanted: Wanted, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_table(str(file), cells=wanted)


def test_a_few_values_that_are_no_numbers_are_named_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,label\n1,a\n2,b\n3;5,a\n1e999,b\n".replace(";", "x"))
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.csv")
    assert "'age' holds numbers, and here none; if these are categories, name the column in data.categorical" in str(
        error.value
    )
    assert "('3x5'): 1 row: " in str(error.value)
    assert "'age' holds a number that is not finite ('1e999'): 1 row: " in str(error.value)


def test_a_table_without_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,a\n")
    with pytest.raises(
        DataError, match=r"no column of numbers or categories besides id, label; name them in data\.columns"
    ):
        read(tmp_path / "a.csv")


def test_rows_are_taken_and_joined(file: Path) -> None:
    table = load_table(str(file), cells=Wanted())
    both = concatenated([table.rows([2]), table.rows([0, 1])])
    assert isinstance(both.inputs, Cells)
    assert both.inputs.columns["code"].tolist() == [7, 7, 8]
    assert both.inputs.of(["sex"]).columns["sex"].tolist() == [None, "f", "m"]
    with pytest.raises(
        DataError, match="source 1 differs from source 0 in the columns 'age', 'sex', which are missing"
    ):
        concatenated_cells([read(file, "age", "code"), read(file, "code", "sex")])
    with pytest.raises(
        DataError, match=r"differs from source 0 in the columns 'code', .* name .* in data\.categorical"
    ):
        concatenated_cells([read(file, "code"), read(file, "code", categorical=("code",))])
