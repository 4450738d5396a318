"""Where each invariant of HeteroTune is tested; tests bear its number in their names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

CATALOGUE = {
    "HT-1 up zero: nothing changes, to the bit": ("adapters/mixture/test_module.py", "adapters/mixture/test_inject.py"),
    "HT-2 first up, then everything; no dead path": (
        "adapters/mixture/test_module.py",
        "adapters/mixture/test_inject.py",
        "methods/test_heterotune.py",
    ),
    "HT-3 foreign branches rest": ("adapters/mixture/test_inject.py", "methods/test_heterotune.py"),
    "HT-4 the backbone stays": ("adapters/mixture/test_inject.py", "methods/test_heterotune.py"),
    "HT-5 one bank for all shapes; unlike ranks are refused": (
        "adapters/mixture/test_inject.py",
        "aggregate/alignment/test_gradients.py",
        "methods/test_heterotune.py",
    ),
    "HT-6 one architecture is FedAvg": ("aggregate/alignment/test_gradients.py", "methods/test_heterotune.py"),
    "HT-7 architectures meet in the branches alone, a round later": ("methods/test_heterotune.py",),
    "HT-8 exact weighted means, whoever comes first": (
        "aggregate/alignment/test_gradients.py",
        "methods/test_heterotune.py",
    ),
    "HT-9 alignment, (a) to (h)": ("aggregate/alignment/test_gradients.py",),
    "HT-10 no work: the state stays": ("aggregate/alignment/test_gradients.py", "methods/test_heterotune.py"),
    "HT-11 bytes are the formula, and small beside the model": (
        "adapters/mixture/test_inject.py",
        "methods/test_heterotune.py",
        "experiment/test_mixture_runs.py",
    ),
    "HT-12 folding is exact or refused": ("adapters/mixture/test_module.py", "adapters/mixture/test_inject.py"),
    "HT-13 gradients are finite differences": ("adapters/mixture/test_module.py",),
    "HT-14 who is away changes nothing and is not changed": (
        "aggregate/alignment/test_gradients.py",
        "methods/test_heterotune.py",
    ),
    "HT-15 two moments for what is trained, and a smaller peak": ("adapters/mixture/test_inject.py",),
}


@pytest.mark.parametrize("invariant", CATALOGUE)
def test_every_invariant_has_tests_that_bear_its_number(invariant):
    number = int(invariant.split()[0].removeprefix("HT-"))
    for file in CATALOGUE[invariant]:
        numbers = {found for name in _tests(file) for found in _numbers(name)}
        assert number in numbers, f"{invariant}: no test in {file} bears its number"


def test_the_catalogue_is_whole():
    assert [invariant.split()[0] for invariant in CATALOGUE] == [f"HT-{number}" for number in range(1, 16)]
    letters = {
        match[1]
        for name in _tests("aggregate/alignment/test_gradients.py")
        if (match := re.search(r"ht_9([a-h])_", name))
    }
    assert letters == set("abcdefgh")


def test_ht_15_the_peak_of_a_step_is_a_bench_with_a_target():
    """Memory needs a process of its own for each way to train, so it is measured in bench/memory.py."""
    bench = (ROOT / "bench" / "memory.py").read_text("utf-8")
    assert re.search(r"^TARGET = 0\.5$", bench, re.MULTILINE)
    assert "moments != 2 * num_trained" in bench


def _tests(file):
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert found
    return found


def _numbers(name):
    """``test_ht_9a_x`` bears 9, ``test_ht_2_to_4_x`` 2, 3 and 4."""
    match = re.match(r"test_ht_(\d+)[a-h]?(?:_to_(\d+))?_", name)
    return range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
