"""Names of sites and classes in Markdown."""

import pytest

from fedquilt.adapters.model_card import CARD, is_own
from fedquilt.core.markdown import code, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ward 3", "ward 3"),
        ("a|b\\|c", r"a\|b\\\|c"),
        ("x\n# title\n", "x # title"),
        ("<img src=x> &lt; ![a](b)", r"\<img src=x\> \&lt; !\[a\](b)"),
    ],
)
def test_a_name_is_no_markup(text, expected):
    assert plain(text) == expected


def test_code_holds_any_backticks():
    assert code("a.csv") == "`a.csv`"
    assert code("a``b`\nc") == "``` a``b` c ```"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("---\ntags: [fedquilt]\n---\n\n# Adapter\n", False),
        ("---\ntags: [fedquilt]\nlicense: mit\n---\n\n# Adapter\n", True),
        ("---\ntags: [fedquilt]\n# license: yours to choose\n---\n\n# Adapter\n", False),
        ("---\ntags: [mine]\n---\nAn adapter of fedquilt.\n", True),
        ("Trained with fedquilt.\n\n# Mine\n", True),
    ],
)
def test_a_card_is_its_owners_once_it_has_a_license(tmp_path, text, own):
    assert not is_own(tmp_path / CARD)
    (tmp_path / CARD).write_text(text)
    assert is_own(tmp_path / CARD) is own
