"""What a folder of data is taken to hold: the splits that the datasets library sees, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from fedquilt.core.errors import DataError
from fedquilt.data.loaders import load_table
from fedquilt.data.readers.by_location import read_location

# the datasets library, which these tests compare with, leaves the files that it reads open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROWS = {"train": "text,label\na,x\nb,y\nc,x\n", "test": "text,label\nd,y\n", "validation": "text,label\ne,x\nf,y\n"}

LAYOUTS = {
    "names": ["train.csv", "test.csv", "validation.csv"],
    "other words": ["training.csv", "eval.csv", "dev.csv"],
    "ends of names": ["sst2_train.csv", "sst2_test.csv", "sst2.dev.csv"],
    "folders": ["train/part-0.csv", "test/part-0.csv", "valid/part-0.csv"],
    "the hub's own conversion": ["default/train/0000.csv", "default/test/0000.csv", "default/validation/0000.csv"],
    "folders before names": ["train/test-1.csv", "test/train-1.csv", "dev/train.csv"],
    "shards": [
        "data/train-00000-of-00001.csv",
        "data/test-00000-of-00001.csv",
        "data/validation-00000-of-00001.csv",
    ],
    "beside a file of no split": ["train.csv", "test.csv", "extra.csv"],
    "no split": ["a.csv", "b.csv", "c.csv"],
    "words inside words": ["trained.csv", "contest.csv", "developer.csv"],
    "train alone": ["train-1.csv", "train-2.csv", "train/train.csv"],
    "hidden": ["train.csv", ".ipynb_checkpoints/test.csv", "__pycache__/test.csv"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def lay(folder: Path, names: list[str]) -> Path:
    for name, text in zip(names, ROWS.values(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def theirs(folder: Path, cache: Path) -> dict[str, list[str]]:
    loaded = datasets.load_dataset(str(folder), cache_dir=str(cache))
    return {str(split): sorted(rows["text"]) for split, rows in loaded.items()}


def ours(folder: Path) -> dict[str, list[str]]:
    return {split: sorted(raw.read("text")) for split, raw in read_location(str(folder), "x", {"text"}).items()}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_has_the_splits_that_the_datasets_library_sees(tmp_path: Path, cache: Path, names: list[str]) -> None:
    folder = lay(tmp_path / "x", names)
    assert ours(folder) == theirs(folder, cache)


def test_what_the_folders_card_says_comes_first(tmp_path: Path, cache: Path) -> None:
    lay(tmp_path, ["a.csv", "b.csv", "c.csv"])
    files = "[{split: train, path: b.csv}, {split: test, path: ['a.csv', 'c*']}]"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert ours(tmp_path) == theirs(tmp_path, cache) == {"train": ["d"], "test": ["a", "b", "c", "e", "f"]}
    both = f"- config_name: one\n  data_files: {files}\n- config_name: two\n  data_files: a.csv\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{both}---\n")
    with pytest.raises(DataError, match="names the configurations one, two"):
        ours(tmp_path)


def test_capital_letters_hide_no_split(tmp_path: Path) -> None:
    lay(tmp_path, ["Train.csv", "TEST.csv", "Dev/part.csv"])
    assert ours(tmp_path) == {"validation": ["e", "f"]}  # names of folders come first
    (tmp_path / "Dev" / "part.csv").unlink()
    assert ours(tmp_path) == {"train": ["a", "b", "c"], "test": ["d"]}


def test_a_file_that_would_be_of_two_splits_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, ["train_test.csv", "test.csv", "dev.csv"])
    with pytest.raises(DataError, match=r"train_test\.csv: its name fits the splits train and test"):
        ours(tmp_path)


def test_files_of_two_types_may_be_the_same_rows_twice(tmp_path: Path) -> None:
    lay(tmp_path, ["train.csv", "train.tsv", "x.csv"])
    with pytest.raises(DataError, match=r"files of the types \.csv, \.tsv, which may be the same rows twice"):
        ours(tmp_path)


def test_a_test_source_with_splits_of_its_own_is_its_test_split(tmp_path: Path) -> None:
    table = load_table(str(lay(tmp_path, ["train.csv", "test.csv", "dev.csv"])))
    assert table.is_train is not None
    assert [str(text) for text, own in zip(table.inputs, table.is_train.tolist(), strict=True) if not own] == ["d"]


@pytest.mark.parametrize("folders", [["train/cat", "train/dog", "test/cat", "test/dog"], ["cat", "dog"], ["cat"]])
def test_a_folder_of_pictures_has_the_classes_of_its_folders(tmp_path: Path, cache: Path, folders: list[str]) -> None:
    for number, folder in enumerate(folders):
        (tmp_path / "x" / folder).mkdir(parents=True)
        Image.new("RGB", (4 + number, 5), (number, 0, 0)).save(tmp_path / "x" / folder / "1.png")
    loaded = datasets.load_dataset(str(tmp_path / "x"), cache_dir=str(cache))
    mine = read_location(str(tmp_path / "x"), "x", set())
    assert {split: raw.num_rows for split, raw in mine.items()} == {split: len(rows) for split, rows in loaded.items()}
    for split, rows in loaded.items():
        names = rows.features["label"].names if "label" in rows.features else None
        assert ("label" in mine[split].names) == (names is not None)
        if names is not None:
            assert sorted(mine[split].read("label")) == sorted(names[label] for label in rows["label"])
    table = load_table(str(tmp_path / "x"))
    assert sorted(int(picture[0, 0, 0]) for picture in table.inputs) == list(range(len(folders)))


def test_a_picture_of_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 rows cannot be used.*\n.*: 2 rows: .*a/1\.png, picture 1; .*b/2\.png"):
        load_table(str(tmp_path))
