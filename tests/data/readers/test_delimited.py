from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.data.readers.delimited import SEPARATORS, read_csv, read_tsv
from fedquilt.data.readers.raw_columns import Raw


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
    raw = read_tsv(write(tmp_path / "a.tsv", "a\t1\nb\tc\t1\n"), {"text"})
    assert raw.troubles == (
        ("3 cells, but the file has 2 columns (text, label)", (str(tmp_path / "a.tsv"), "line", 2)),
    )
    with pytest.raises(DataError, match=r"the first line has 4 cells .* must have 2 columns"):
        read_tsv(write(tmp_path / "b.tsv", "a\tb\tc\td\n"), {"text"})


def test_csv_keeps_commas_and_line_ends_inside_quotes(tmp_path: Path) -> None:
    raw = read_csv(write(tmp_path / "a.csv", '\ufefftext,label\r\n"one, two\nthree",x\r\n'))
    assert raw.names == ("text", "label")
    assert raw.read("text") == ["one, two\nthree"]


def test_csv_names_the_line_with_too_few_cells(tmp_path: Path) -> None:
    raw = read_csv(write(tmp_path / "a.csv", "text,label\na,1\nb\nc,2\n"))
    assert raw.read("text") == ["a", "c"]
    assert raw.origin.number.tolist() == [2, 4]
    assert raw.troubles == (("1 cell, but the file has 2 columns (text, label)", (str(tmp_path / "a.csv"), "line", 3)),)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 2: byte 5 of the file is not UTF-8"):
        read_csv(write(tmp_path / "a.csv", b"text\n\xff\n"))


SIGNS = {"U+2028": "\u2028", "U+0085": "\x85", "form feed": "\x0c", "vertical tab": "\x0b", "U+001C": "\x1c"}


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_no_sign_but_a_line_end_ends_a_row(tmp_path: Path, sign: str, separator: str) -> None:
    frame = pd.DataFrame({"text": [f"one{sign}two", "other"], "label": ["a", "b"]})
    path = tmp_path / ("a.csv" if separator == "," else "a.tsv")
    frame.to_csv(path, index=False, sep=separator)
    raw = read_csv(path) if separator == "," else read_tsv(path, {"text", "label"})
    assert raw.read("text") == [f"one{sign}two", "other"]


CELLS = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), st.sampled_from("ab")),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CELLS, st.sampled_from(SEPARATORS), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_what_a_csv_writer_wrote_is_read_back(
    tmp_path: Path, cells: list[tuple[str, str]], separator: str, end: str, mark: bool, every: bool
) -> None:
    file = io.StringIO()
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "label"), *cells])
    raw = read_csv(write(tmp_path / "a.csv", ("\ufeff" if mark else "") + file.getvalue()))
    assert raw.names == ("text", "label")
    assert raw.read("text") == [text for text, _ in cells]
    assert raw.read("label") == [label for _, label in cells]


def test_a_row_is_named_by_the_line_on_which_it_starts(tmp_path: Path) -> None:
    raw = read_csv(write(tmp_path / "a.csv", 'text,label\n\n"one\ntwo\nthree",x\nb,y\n'))
    assert raw.origin.number.tolist() == [3, 6]
    assert raw.origin.location(1) == (str(tmp_path / "a.csv"), "line", 6)


def test_a_long_document_is_one_cell(tmp_path: Path) -> None:
    raw = read_csv(write(tmp_path / "a.csv", f'text,label\n"{"word " * 40_000}",a\n'))
    assert len(raw.read("text")[0]) == 200_000


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("text;label\na, b;1\n", ("text", "label")),
        ('"text";"label"\n"a;b";"1"\n', ("text", "label")),
        ("text|label\na,b|1\n", ("text", "label")),
        ("text,a;b\nx,1\n", ("text", "a;b")),
        ("a,b;label\nx;1\n", ("a,b", "label")),
        ("text\na\n", ("text",)),
        (",text,label\n0,a,1\n", ("Unnamed: 0", "text", "label")),
    ],
)
def test_the_separator_is_what_cuts_the_line_of_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    raw = read_csv(write(tmp_path / "a.csv", text))
    assert (raw.names, raw.num_rows, raw.troubles) == (names, 1, ())


@pytest.mark.parametrize("read", [read_csv, lambda path: read_tsv(path, {"text"})])
def test_a_name_that_stands_twice_is_refused(tmp_path: Path, read: Callable[[Path], Raw]) -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 1: the column 'label' occurs twice"):
        read(write(tmp_path / "a.csv", "text\tlabel\tlabel\na\t1\t2\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('text,label\n"a,1\nb,2\n', "a quote is never closed"),
        ('text,label\n"a"b,1\n', "its quotes are broken, ',' expected after '\"'"),
    ],
)
def test_a_broken_quote_does_not_swallow_rows(tmp_path: Path, text: str, said: str) -> None:
    ((what, place),) = read_csv(write(tmp_path / "a.csv", text)).troubles
    assert (what, place.number) == (said, 2)


def test_tsv_quotes_have_meaning_only_where_all_are_written_as_writers_do(tmp_path: Path) -> None:
    texts = ['say "so"', "a\tb", "two\nlines", '"all"']
    pd.DataFrame({"text": texts, "label": list("1212")}).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert read_tsv(tmp_path / "a.tsv", {"text"}).read("text") == texts
    plain = read_tsv(write(tmp_path / "b.tsv", '"good" he said\t1\n"bad\t0\n'), {"text"})
    assert plain.read("text") == ['"good" he said', '"bad']


@pytest.mark.parametrize("header", [("sentence", "class"), ("Text", "Label"), ("review", "sentiment")])
def test_a_header_without_a_wanted_column_is_not_read_as_a_row(tmp_path: Path, header: tuple[str, str]) -> None:
    rows = [header, ("a fine film", "good"), ("dull", "bad"), ("so so", "bad")]
    path = write(tmp_path / "a.tsv", "".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"line 1: holds '{header[0]}', '{header[1]}', .*it looks like a header"):
        read_tsv(path, {"text", "label"})
    assert read_tsv(path, set(header)).num_rows == 3
    path.write_text("\n".join("\t".join(row) for row in [("great", "good"), *rows[1:]]))
    assert read_tsv(path, {"text", "label"}).num_rows == 4
