"""Ids of rows, written one way in all parties' files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fedquilt.core.errors import DataError

MAX_IDS = 5_000_000
"""Most ids of one party: two blinded lists of this length stay below the largest message of Flower's engine."""

MIN_KEY_BYTES = 32


def normalised(value: object, *, fold_case: bool = False) -> str:
    """The one form of an id: text in Unicode's NFC form, without white space around it; empty if there is none.

    A number becomes its digits: 12, 12.0 (a reader's form of whole numbers in a column with gaps) and "12" are one id.
    Zeros in front of the digits of a text are part of it.
    """
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", str(value)).strip()
    # folding can undo the normal form, so that it comes again
    return unicodedata.normalize("NFC", text.casefold()) if fold_case else text


def id_list(values: Iterable[object], path: str | Path, column: str, *, fold_case: bool = False) -> tuple[str, ...]:
    """The normalised ids of a file's rows, in the file's order.

    Parameters
    ----------
    values
        The column's values.
    path, column
        The file and the column, for errors.
    fold_case
        Whether upper and lower case are the same.

    Raises
    ------
    DataError
        if there are no rows or too many, if ids are empty or no valid text, or if an id occurs twice. Messages hold
        row numbers, never ids: a party's error is reported to the server.
    """
    ids = tuple(normalised(value, fold_case=fold_case) for value in values)
    where = f"{path}: column '{column}'"
    if not 1 <= len(ids) <= MAX_IDS:
        raise DataError(f"{where} has {len(ids)} ids; from 1 to {MAX_IDS} can be aligned")
    if empty := [row for row, one in enumerate(ids, 1) if not one]:
        raise DataError(f"{where} has {len(empty)} empty ids (the first in row {empty[0]}); every row needs an id")
    if odd := [row for row, one in enumerate(ids, 1) if not _is_text(one)]:
        raise DataError(f"{where} has {len(odd)} ids that are no valid Unicode text (the first in row {odd[0]})")
    counts = Counter(ids)
    if len(counts) < len(ids):
        again = [row for row, one in enumerate(ids, 1) if counts[one] > 1]
        several = len(ids) - sum(count == 1 for count in counts.values())
        raise DataError(
            f"{where} has {sum(count > 1 for count in counts.values())} ids that occur more than once, in {several} "
            f"rows (the first is row {again[0]}); keep one row for each id"
        )
    return ids


def read_key(path: str | Path) -> bytes:
    """The key in a file, without the end of its last line.

    Raises
    ------
    DataError
        if the file cannot be read, or the key is too short.
    """
    try:
        key = Path(path).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise DataError(f"partition.key_file: {path} cannot be read ({error.strerror})") from error
    if len(key) < MIN_KEY_BYTES:
        raise DataError(
            f"partition.key_file: {path} holds {len(key)} bytes; a key has at least {MIN_KEY_BYTES}, as "
            "`openssl rand -hex 32` writes them"
        )
    return key


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
