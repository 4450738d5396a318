from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedquilt.core.errors import DataError
from fedquilt.data.readers.files import read_json, read_jsonl, read_npz
from fedquilt.data.readers.raw_columns import Raw


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_jsonl_fills_missing_keys_with_none(tmp_path: Path) -> None:
    raw = read_jsonl(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2, "b": "x"}\n'))
    assert raw.read("a") == [1, 2]
    assert raw.read("b") == [None, "x"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a"', "not JSON (Expecting ':' delimiter)"),
        ("[1]", "not JSON (list found)"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5_000 + "}", "Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("read", [read_jsonl, read_json])
def test_what_is_no_json_object_is_named_with_its_line(
    tmp_path: Path, read: Callable[[Path], Raw], line: str, said: str
) -> None:
    raw = read(write(tmp_path / "a.json", f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n'))
    assert raw.read("a") == [1, 2]
    assert raw.origin.number.tolist() == [1, 4]
    ((what, place),) = raw.troubles
    assert said in what
    assert place == (str(tmp_path / "a.json"), "line", 3)


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a": ' + "9" * 5_000 + "}]", '[{"a": 1, "a": 2}]'])
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json: not JSON \((nested too deep|Exceeds the limit|the key 'a')"):
        read_json(write(tmp_path / "a.json", text))


def test_npz_gives_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[3, 4])
    raw = read_npz(tmp_path / "a.npz")
    assert set(raw.names) == {"images", "labels"}
    assert raw.num_rows == 2


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 broken"])
def test_npz_that_is_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(
        DataError, match=r"a\.npz: is not an \.npz archive or is damaged .* download or write the file again"
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
