"""Where each invariant of LaDa's parts is tested; tests bear its number in their names."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CATALOGUE = {
    "1 a path's joint log-probability is the sum of its steps'": ("distill/test_paths.py",),
    "2 equal models and swapped or equal paths": ("distill/test_contrast.py",),
    "3 a step widens the margin; the gradient for a small beta": ("distill/test_contrast.py",),
    "4 the batch reward and the label": ("distill/test_reward.py",),
    "5 what the second network learns, and from what": ("distill/test_filter.py",),
    "6 filters share nothing": ("distill/test_filter.py",),
    "7 the first choice, determinism, never empty": ("distill/test_filter.py",),
    "8 a share of one is no filter; no contrast is supervised fine-tuning": (
        "distill/test_filter.py",
        "distill/test_contrast.py",
        "methods/test_lada.py",
        "methods/test_lada_schemes.py",
    ),
    "9 what crosses the wire": ("methods/test_lada.py",),
    "10 what was not chosen has no gradient; weights have no scale": ("distill/test_contrast.py",),
    "11 accuracies and right paths in a miniature": ("distill/test_miniature.py",),
}


@pytest.mark.parametrize("invariant", CATALOGUE)
def test_every_invariant_has_tests_that_bear_its_number(invariant):
    number = invariant.split()[0]
    for file in CATALOGUE[invariant]:
        tree = ast.parse((TESTS / file).read_text("utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert any(re.match(rf"test_lada_{number}_", name) for name in names), f"{invariant}: no test in {file}"


def test_no_number_is_left_out():
    assert {int(invariant.split()[0]) for invariant in CATALOGUE} == {*range(1, 12)}
