"""Pieces of HTML that a page and a notebook share; every text in them is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape


def table_html(cells: Sequence[Sequence[str]]) -> str:
    """A table whose first line of texts is its heading."""
    head, *lines = cells
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<tr>{top}</tr>\n{rest}\n</table></div>'


def picture_html(name: str, content: bytes) -> str:
    """A PNG picture that lies in the HTML itself, with its name below it."""
    data = base64.b64encode(content).decode("ascii")
    text = escape(name.replace("-", " "))
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
