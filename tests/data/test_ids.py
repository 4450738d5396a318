"""One form of every id, and the errors of a file whose ids cannot be aligned."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.data.ids import id_list, normalised, read_key


@pytest.mark.parametrize("value", ["12", " 12\t", 12, 12.0, np.int64(12), np.float64(12.0)])
def test_a_number_and_its_digits_are_one_id(value) -> None:
    assert normalised(value) == "12"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("e\u0301", "\u00e9"),
        ("007", "007"),
        ("A b", "A b"),
        (None, ""),
        (math.nan, ""),
        ("  ", ""),
        (1.5, "1.5"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_the_form_of_an_id(value, expected) -> None:
    assert normalised(value) == expected


def test_case_counts_unless_it_is_folded() -> None:
    assert normalised("Straße") != normalised("STRASSE")
    assert normalised("Straße", fold_case=True) == normalised("STRASSE", fold_case=True)


@given(st.text(), st.booleans())
def test_the_form_of_a_form_is_itself(text, fold_case) -> None:
    once = normalised(text, fold_case=fold_case)
    assert normalised(once, fold_case=fold_case) == once


def test_ids_keep_the_order_of_the_file() -> None:
    assert id_list(["b", 2, " a "], "bank.csv", "customer") == ("b", "2", "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "secret", "b", "secret ", "b"], r"2 ids that occur more than once, in 4 rows \(the first is row 2\)"),
        (["a", "", None], r"2 empty ids \(the first in row 2\)"),
        (["a", "\ud800"], r"1 ids that are no valid Unicode text \(the first in row 2\)"),
        ([], r"0 ids; from 1 to 5000000"),
    ],
)
def test_a_file_with_unusable_ids_is_refused_with_file_column_and_count_but_no_id(values, message) -> None:
    with pytest.raises(DataError, match=r"bank\.csv: column 'customer' has " + message) as caught:
        id_list(values, "bank.csv", "customer")
    assert "secret" not in str(caught.value)


def test_a_key_is_read_without_the_end_of_its_line_and_not_shown(tmp_path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 40 + b"\r\n")
    assert read_key(path) == b"k" * 40
    path.write_bytes(b"short secret\n")
    with pytest.raises(DataError, match=r"partition\.key_file: .*key holds 12 bytes; .* at least 32") as caught:
        read_key(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_key(tmp_path / "none")
