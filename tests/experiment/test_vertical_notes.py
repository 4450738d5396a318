"""What ``check`` remarks on the rows of a vertical federation's parties."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from parties import FILE, of_files, write_files

from fedquilt.config.load import parse
from fedquilt.experiment.check import check

NOWHERE = "only methods with an offset for classes that nobody has learned predict it"


def remarks(**partition: Any) -> list[str]:
    raw = tomllib.loads(FILE) | {"method": {"name": "proto-evfl"}}
    raw["partition"] |= partition
    raw["parties"][3]["classes"] = ["3", "4"]
    raw["parties"][2]["classes"] = ["3"]
    raw["parties"][2]["unaligned"] = 0
    raw["parties"][0]["classes"] = ["7"]
    notes: list[str] = []
    assert check(parse(raw), notes=notes) == []
    return notes


def test_classes_without_rows_and_parties_without_rows_are_remarked_upon() -> None:
    found = remarks(aligned=14, aligned_classes=["1", "2"], unaligned=20)
    assert found == [
        "no aligned row of classes '3', '4', '7': only methods that learn from unaligned rows predict it",
        f"no labelled row of classes '0', '5', '6', '8', '9' at any party: {NOWHERE}",
        "party 'right' knows no labels of its 20 unaligned rows",
        "party 'top' has no unaligned rows, so it learns from the 14 aligned ones alone",
    ]
    few = remarks(aligned=16, unaligned=20)
    assert few[0].startswith("fewer than 5 aligned rows of classes '0', '1',")
    assert few[0].endswith("'7' and 2 more")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def test_common_rows_of_files_are_counted_and_the_keyed_hash_is_explained(files: Path) -> None:
    notes: list[str] = []
    assert check(of_files(files), notes=notes) == []
    keyed, common = notes
    assert keyed.startswith("partition.alignment = 'keyed-hash': whoever has the key can test guessed ids")
    assert common == "40 rows are in all files, of which 20 % are predicted and not learned from"
    lines = (files / "shop.csv").read_text().splitlines()
    (files / "shop.csv").write_text("\n".join(lines[:1] + [line for line in lines if line[1:4] == "006"]) + "\n")
    notes = []
    assert check(of_files(files), notes=notes) == []
    assert notes[1].startswith("10 rows are in all files")
    assert notes[2].startswith("fewer than 5 aligned rows of class 'yes'")
    # a site sees its own file alone
    (files / "bank.csv").unlink()
    notes = []
    assert check(of_files(files), here=(0,), notes=notes) == []
    assert notes == [keyed]


def test_files_without_a_common_row_are_found_before_a_run(files: Path) -> None:
    text = (files / "shop.csv").read_text()
    (files / "shop.csv").write_text(text.replace("\nC", "\nK"))
    (problem,) = check(of_files(files))
    assert problem.startswith("partition.id: no id is in all files (of the 160 of 'bank', 'shop' shares 0, ")


def test_a_wrong_column_of_ids_is_named_by_its_key(files: Path) -> None:
    raw = of_files(files).partition.model_dump(exclude_defaults=True)
    (problem,) = check(of_files(files, partition={**raw, "id": "custmer"}))
    assert "partition.id = 'custmer': the column 'custmer' is not there (did you mean 'customer'?)" in problem
