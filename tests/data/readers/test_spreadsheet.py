"""Spreadsheets are read like other tables: one sheet, or the one that is named."""

import datetime
import re
import sys
import time
import zipfile
from pathlib import Path

import openpyxl
import pytest

from fedquilt.core.errors import DataError
from fedquilt.data.loaders import load_table
from fedquilt.data.look import look
from fedquilt.data.readers.spreadsheet import read_xlsx


@pytest.fixture
def book(tmp_path):
    """``book(sheet=rows, ...)``: the path of a workbook."""

    def make(**sheets):
        made = openpyxl.Workbook()
        made.remove(made.active)
        for name, rows in sheets.items():
            sheet = made.create_sheet(name)
            for row in rows:
                sheet.append(row)
        path = tmp_path / "visits.xlsx"
        made.save(path)
        return path

    return make


ROWS = [["note", "department"], ["heart beats", "cardiology"], [None, None], ["brain scans", "neurology"]]


def test_one_sheet_is_a_table_beside_empty_ones(book):
    (raw,) = read_xlsx(book(Visits=ROWS, Notes=[])).values()
    assert (raw.names, raw.num_rows) == (("note", "department"), 2)
    assert raw.read("department") == ["cardiology", "neurology"]
    table = load_table(str(book(Visits=ROWS)), text="note", label="department")
    assert (len(table), table.classes) == (2, ("cardiology", "neurology"))


def test_numbers_moments_and_gaps_keep_their_kind(book):
    day = datetime.date(2024, 5, 1)
    (raw,) = read_xlsx(book(A=[["age", "when", "ok", None], [41, day, True], [1.5, None, False]])).values()
    assert raw.read("age") == [41, 1.5]
    assert raw.read("when") == ["2024-05-01T00:00:00", None]
    assert raw.read("ok") == [True, False]


def test_of_several_sheets_one_is_named(book):
    path = book(North=ROWS, South=[*ROWS, ["pulse falls", "cardiology"]])
    with pytest.raises(DataError, match=r"has the splits North, South .*rows\.xlsx@sheet"):
        load_table(str(path), text="note", label="department")
    assert len(load_table(f"{path}@South", text="note", label="department")) == 3
    assert look(f"{path}@South").num_rows == 3
    with pytest.raises(DataError, match=r"there is no 'Sout' \(did you mean 'South'\?\); there are: North, South"):
        look(f"{path}@Sout")


def test_rows_that_no_column_fits_are_told_by_their_number(book):
    path = book(A=[["note", "department"], ["a b", "x", "beyond"], ["c d", "y"]])
    with pytest.raises(DataError, match=r"cells beyond the named columns.*row 2"):
        load_table(str(path), text="note", label="department")
    with pytest.raises(DataError, match=r"row 1|line 1.*'note' occurs twice"):
        read_xlsx(book(A=[["note", "note"], ["a", "b"]]))


def test_what_is_no_spreadsheet_or_a_bomb_is_refused(tmp_path):
    path = tmp_path / "visits.xlsx"
    path.write_bytes(b"note,department\n")
    with pytest.raises(DataError, match=r"is not a spreadsheet \(\.xlsx\) or is damaged .*; save it again, or as CSV"):
        read_xlsx(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"\0" * (1 << 27))
    with pytest.raises(DataError, match="decompression bomb"):
        read_xlsx(path)


@pytest.fixture
def edited(book):
    """``edited(change)``: the path of a workbook whose sheet's XML was changed."""

    def make(change):
        path = book(A=ROWS)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        sheet = "xl/worksheets/sheet1.xml"
        parts[sheet] = change(parts[sheet].decode()).encode()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return path

    return make


def test_a_sheet_is_not_filled_up_to_the_size_that_it_states(edited):
    began = time.process_time()
    path = edited(lambda text: re.sub(r'<dimension ref="[^"]*" ?/>', '<dimension ref="A1:XFD1048576"/>', text))
    (raw,) = read_xlsx(path).values()
    assert raw.read("department") == ["cardiology", "neurology"]
    far = edited(lambda text: text.replace("A1:B4", "A1:XFD4").replace('<row r="4"', '<row r="1048576"'))
    assert len(load_table(str(far), text="note", label="department")) == 2
    assert time.process_time() - began < 20


def test_a_row_beyond_those_of_every_spreadsheet_is_refused(edited):
    with pytest.raises(DataError, match="sheet 'A' has rows beyond 1,048,576, the most of a spreadsheet"):
        read_xlsx(edited(lambda text: text.replace('<row r="4"', '<row r="9999999999"')))


@pytest.mark.parametrize("body", ["&lol9;", "&file;"])
def test_entities_of_a_sheet_are_not_followed(edited, tmp_path, body):
    (tmp_path / "secret").write_text("the secret")
    laughs = "".join(f'<!ENTITY lol{n + 1} "{f"&lol{n};" * 10}">' for n in range(9))
    head = f'<!DOCTYPE a [<!ENTITY lol0 "ha">{laughs}<!ENTITY file SYSTEM "file://{tmp_path}/secret">]>'
    cell = f'<c r="A2" t="inlineStr"><is><t>{body}</t></is></c>'
    path = edited(lambda text: head + re.sub(r"<\?xml[^>]*>", "", re.sub(r'<c r="A2".*?</c>', cell, text)))
    try:
        (raw,) = read_xlsx(path).values()
    except DataError:
        return
    assert all(len(str(value)) < 1000 and "secret" not in str(value) for value in raw.read("note"))


def test_without_openpyxl_it_says_what_to_install(book, monkeypatch):
    path = book(A=ROWS)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"save the sheet as CSV, or install it with: .*pip install .*\[excel\]"):
        read_xlsx(path)


def test_a_run_file_is_drafted_from_a_sheet(command, book):
    sites = [["note", "department", "hospital"]]
    sites += [[f"word {n} of many", "ab"[n % 2], "xyz"[n // 2 % 3]] for n in range(90)]
    path = book(Visits=sites, Other=ROWS)
    assert command("init", f"{Path(path).name}@Visits", "--output", "made.toml").code == 0
    assert 'source = "./visits.xlsx@Visits"' in Path("made.toml").read_text()
    checked = command("check", "made.toml")
    assert checked.code == 0, checked.err
