"""A list of dictionaries that is displayed as a table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.report.html import table_html
from fedquilt.report.layout import laid_out


def terminal_width() -> int | None:
    """The number of columns of the terminal that output goes to; None elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Rows(list[Mapping[str, Any]]):
    """The rows of a table, one dictionary each, as ``pandas.DataFrame(rows)`` takes them.

    Printed, or as the last value of a notebook's cell, they are displayed as a table of rounded numbers. ``cells`` are
    the texts of its heading and of each row.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], cells: Sequence[Sequence[str]]) -> None:
        super().__init__(rows)
        self.cells = [list(line) for line in cells]

    def __repr__(self) -> str:
        return laid_out(self.cells, terminal_width())

    def _repr_html_(self) -> str:
        return table_html(self.cells) if self.cells else "<p>no rows</p>"
