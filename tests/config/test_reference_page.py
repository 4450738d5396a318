"""The page of keys is the schema's."""

from pathlib import Path

from fedquilt.config.reference_page import page
from fedquilt.config.schema import Config

PAGE = Path(__file__).parents[2] / "docs" / "run-file.md"


def test_the_page_in_docs_is_the_one_made_from_the_schema():
    assert PAGE.read_text("utf-8") == page(), "run: python -m fedquilt.config.reference_page > docs/run-file.md"


def test_every_key_of_the_schema_has_a_meaning():
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > len(Config.model_fields)
    assert not [row for row in rows if row.endswith("|  |")]
