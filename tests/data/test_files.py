from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedquilt.core.errors import DataError
from fedquilt.data.files import read_csv, read_jsonl, read_npz, read_tsv


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_tsv_without_names_is_text_and_label(tmp_path: Path) -> None:
    raw = read_tsv(write(tmp_path / "a.tsv", "it 's \"good\t1\nbad\t0\n\n"), {"text", "label"})
    assert raw.names == ("text", "label")
    assert raw.read("text") == ["it 's \"good", "bad"]
    assert raw.read("label") == ["1", "0"]


def test_tsv_with_three_cells_has_a_pair(tmp_path: Path) -> None:
    raw = read_tsv(write(tmp_path / "a.tsv", "a\tb\t1\r\n"), {"text", "label"})
    assert {name: raw.read(name) for name in raw.names} == {"text": ["a"], "pair": ["b"], "label": ["1"]}


def test_tsv_first_line_holds_names_if_it_names_a_wanted_column(tmp_path: Path) -> None:
    raw = read_tsv(write(tmp_path / "a.tsv", "sentence\tlabel\nfine\t1\n"), {"text", "label"})
    assert raw.names == ("sentence", "label")
    assert raw.num_rows == 1


def test_tsv_errors_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tsv, line 2: 3 cells, but the file has 2 columns \(text, label\)"):
        read_tsv(write(tmp_path / "a.tsv", "a\t1\nb\tc\t1\n"), {"text"})
    with pytest.raises(DataError, match=r"the first line has 4 cells .* must have 2 columns"):
        read_tsv(write(tmp_path / "b.tsv", "a\tb\tc\td\n"), {"text"})


def test_csv_keeps_commas_and_line_ends_inside_quotes(tmp_path: Path) -> None:
    raw = read_csv(write(tmp_path / "a.csv", '\ufefftext,label\r\n"one, two\nthree",x\r\n'))
    assert raw.names == ("text", "label")
    assert raw.read("text") == ["one, two\nthree"]


def test_csv_names_the_line_with_too_few_cells(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 3: 1 cells, but the file has 2 columns"):
        read_csv(write(tmp_path / "a.csv", "text,label\na,1\nb\n"))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="byte 5 is not UTF-8"):
        read_csv(write(tmp_path / "a.csv", b"text\n\xff\n"))


def test_jsonl_fills_missing_keys_with_none(tmp_path: Path) -> None:
    raw = read_jsonl(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2, "b": "x"}\n'))
    assert raw.read("a") == [1, 2]
    assert raw.read("b") == [None, "x"]


@pytest.mark.parametrize(("text", "said"), [('{"a": 1}\n{"a"\n', "line 2: not JSON"), ("[1]\n", "line 1: list found")])
def test_jsonl_errors_name_the_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_jsonl(write(tmp_path / "a.jsonl", text))


def test_npz_gives_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[3, 4])
    raw = read_npz(tmp_path / "a.npz")
    assert set(raw.names) == {"images", "labels"}
    assert raw.num_rows == 2


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 broken"])
def test_npz_that_is_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(
        DataError, match=r"a\.npz: is not an \.npz archive or is damaged .* fetch or write the file again"
    ):
        read_npz(write(tmp_path / "a.npz", content))


def test_npz_with_a_damaged_array_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 255, (50, 8, 8)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300:400] = bytes(100)
    with pytest.raises(DataError, match="damaged"):
        read_npz(write(tmp_path / "a.npz", bytes(content)))


def test_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}, []], dtype=object))
    with pytest.raises(DataError, match="pickled Python objects"):
        read_npz(tmp_path / "a.npz")


def test_npz_arrays_must_have_one_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), labels=[1, 2, 3])
    with pytest.raises(DataError, match=r"one row for each example .images has 2, labels has 3"):
        read_npz(tmp_path / "a.npz")
