"""A module is one idea: a page or two of code."""

from __future__ import annotations

import warnings

from project_sources import sources

LONG, TOO_LONG = 300, 400


def test_no_module_is_too_long() -> None:
    lines = {source.path: len(source.text.splitlines()) for source in sources()}
    long = {path: count for path, count in lines.items() if count > LONG}
    too_long = {path: count for path, count in long.items() if count > TOO_LONG}
    assert not too_long, f"more than {TOO_LONG} lines, which idea moves out? {too_long}"
    if long:
        warnings.warn(f"modules over {LONG} lines: {long}", stacklevel=1)
