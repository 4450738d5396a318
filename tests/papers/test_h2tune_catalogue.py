"""Where each invariant of H2Tune is tested; tests bear its number and say what the released code does."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CATALOGUE = {
    "H2-1 B zero: nothing changes": ("adapters/lora/test_core.py",),
    "H2-2 core zero: plain LoRA": ("adapters/lora/test_core.py", "methods/test_h2tune.py"),
    "H2-3 no work: the bank stays": (
        "bank/test_merge.py",
        "bank/test_client_cores.py",
        "laws/test_triple_federation.py",
    ),
    "H2-4 what is offered is what the client's layers are made of": (
        "bank/test_merge.py",
        "bank/test_client_cores.py",
        "methods/test_h2tune.py",
    ),
    "H2-5 one changed entry shows in that entry alone": ("bank/test_merge.py", "methods/test_h2tune.py"),
    "H2-6 a choice is sorted, unique, of its size, and the whole at full rank": (
        "bank/test_entries.py",
        "bank/test_selection.py",
        "methods/test_h2tune.py",
    ),
    "H2-7 how scores rank the chosen entries does not matter": ("bank/test_selection.py",),
    "H2-8 equal clients: the weighted mean": ("bank/test_merge.py",),
    "H2-9 entries move by those who hold them": ("bank/test_merge.py",),
    "H2-10 the relation is shares, and learns from the task": (
        "bank/test_relation.py",
        "adapters/lora/test_core.py",
        "bank/test_client_cores.py",
        "laws/test_triple_federation.py",
    ),
    "H2-11 a phase moves its own parts": ("client/test_alternate.py", "methods/test_h2tune.py"),
    "H2-12 disagreement minds neither padding nor prompt": ("client/test_agreement.py", "client/test_alternate.py"),
    "H2-13 what the core learns stays": ("adapters/lora/test_core.py",),
    "H2-14 live, merged and folded agree": ("adapters/lora/test_core.py",),
    "H2-15 only slots and coverage travel": ("bank/test_merge.py", "methods/test_h2tune.py"),
    "H2-16 bytes are the formula": ("bank/test_merge.py", "bank/test_selection.py", "methods/test_h2tune.py"),
    "H2-17 the relation by depth": ("bank/test_relation.py",),
    "H2-18 the same seed, the same bits": (
        "bank/test_selection.py",
        "bank/test_merge.py",
        "laws/test_triple_federation.py",
        "methods/test_h2tune.py",
    ),
    "H2-19 a client that was killed sends the same": ("methods/test_h2tune.py",),
    "H2-20 the baselines are what they are called": ("papers/test_h2tune_baselines.py",),
    "H2-21 a round trip is a mean": ("bank/test_relation.py", "bank/test_merge.py"),
}
BUG = re.compile(r"\bB\d+\b|[Rr]eleased|private factors")


@pytest.mark.parametrize("invariant", CATALOGUE)
def test_every_invariant_has_tests_that_name_it_and_the_bug_it_catches(invariant):
    number = invariant.split()[0]
    for file in CATALOGUE[invariant]:
        texts = [text for text in _docstrings(file) if re.search(rf"\b{number}\b", text)]
        assert texts, f"{invariant}: no test in {file} bears its number"
        assert any(BUG.search(text) for text in texts), f"{invariant}: no test in {file} says what it catches"


def _docstrings(file):
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    tests = [node for node in ast.walk(tree) if getattr(node, "name", "").startswith("test_")]
    assert tests
    return [ast.get_docstring(test) or "" for test in tests]
