"""Every text of an error on the page of troubleshooting occurs in the source, as a part of one message."""

import ast
import re

import pytest
from doc_blocks import ROOT
from project_sources import sources

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text("utf-8"), re.M)


def messages():
    """The texts of src/, with a null character for whatever is put into one."""
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture(scope="module")
def every_message():
    return "\n\n".join(messages())


def test_the_page_quotes_errors():
    assert len(QUOTED) > 40
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("text", QUOTED)
def test_a_quoted_error_occurs_in_the_source(text, every_message):
    # the dots stand for at most one stretch of one message
    pattern = r"[^\n]*?".join(re.escape(part) for part in text.strip("… ").split("…"))
    assert re.search(pattern, every_message), text
